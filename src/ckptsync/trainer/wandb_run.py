"""Resumes a W&B run inside the training process, for scripts and notebooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ckptsync.checkpoint import Run
from ckptsync.errors import ConfigurationError, NotFoundError


@contextlib.contextmanager
def resumed(run: Run, artifact: str | None, settings: dict[str, Any]) -> Iterator[Any]:
    """Resume a run, which must exist, with the artifact as an input, and finish it when the block ends.

    `settings` are further arguments of `wandb.init`. Raises NotFoundError if there is no such run, and ConfigurationError if
    a run is active in this process.
    """
    import wandb

    if wandb.run is not None:
        raise ConfigurationError(f"run {wandb.run.id} is active in this process already", hint="Call wandb.finish() first.")
    try:
        live = wandb.init(entity=run.entity, project=run.project, id=run.run_id, resume="must", **settings)
    except wandb.errors.UsageError as error:
        raise NotFoundError(f"there is no run {run}") from error
    try:
        if artifact:
            live.use_artifact(artifact)
        yield live
    except BaseException as error:
        left = isinstance(error, SystemExit) and error.code in (None, 0)
        live.finish(exit_code=0 if left else 1)
        raise
    live.finish()
