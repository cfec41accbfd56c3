"""Goes on with a W&B run inside the training process, as a script of one's own or a notebook does it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ckptsync.checkpoint import Run
from ckptsync.errors import ConfigurationError, NotFoundError


@contextlib.contextmanager
def resumed(run: Run, artifact: str | None, settings: dict[str, Any]) -> Iterator[Any]:
    """The same run again, which must exist, with the artifact among its inputs; finished when the block ends.

    `settings` are further arguments of `wandb.init`. Raises NotFoundError when there is no such run, and ConfigurationError
    while another run is active in this process.
    """
    import wandb

    if wandb.run is not None and wandb.run.id != run.run_id:
        raise ConfigurationError(f"run {wandb.run.id} is active in this process", hint="Call wandb.finish() first.")
    try:
        live = wandb.init(entity=run.entity, project=run.project, id=run.run_id, resume="must", **settings)
    except wandb.errors.UsageError as error:
        raise NotFoundError(f"there is no run {run}") from error
    try:
        if artifact:
            live.use_artifact(artifact)
        yield live
    except BaseException:
        live.finish(exit_code=1)
        raise
    live.finish()
