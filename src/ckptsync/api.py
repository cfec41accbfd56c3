"""What Python programs and notebooks call. Imports neither torch, transformers nor wandb.

Downloads run in a process of their own, since the wandb client's settings belong to a whole process and this one trains.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ckptsync import config, connections
from ckptsync.checkpoint import Run, Verdict
from ckptsync.errors import ConfigurationError
from ckptsync.job import overview
from ckptsync.restore import resume
from ckptsync.restore.download import require_free
from ckptsync.trainer import wandb_run
from ckptsync.upload.child import Child
from ckptsync.upload.spool import Spool
from ckptsync.upload.validation import validate

STALL = 300.0
"""Seconds without a byte after which a download counts as hung."""


def pull(
    run: str,
    dest: str | os.PathLike[str],
    *,
    model: bool = False,
    project: str | None = None,
    entity: str | None = None,
    local: bool = False,
) -> Path:
    """Download a version into a folder that is new or empty, verify every byte, and return the folder.

    Args:
        run: RUN_ID or ENTITY/PROJECT/RUN_ID, with :ALIAS (best, step-500, v3) for one version; else the newest valid
            one.
        dest: The folder. It appears in one step; an interrupted pull continues.
        model: Download the final model (`model-<run_id>`) instead of a checkpoint.
        project: The W&B project; else WANDB_PROJECT, else huggingface.
        entity: The W&B entity; else WANDB_ENTITY, else your default one.
        local: Use the embedded server instead of W&B.

    Raises:
        NotFoundError: There is no such run or version.
        IntegrityError: No version is valid.
        UsageError: The folder isn't empty, or `run` is malformed.
        ConfigurationError: There are no credentials, or the server refuses them.
        TransientStoreError: The store is unreachable.
    """
    target = require_free(Path(dest))
    named, alias = config.parse_run(run, project=project, entity=entity)
    with connections.environment_of(local=local):
        return Path(_pulled(named, alias, target, model=model)["path"])


def versions(run: str, *, project: str | None = None, entity: str | None = None, local: bool = False) -> list[dict[str, Any]]:
    """The versions of a run's checkpoints and final model, newest first, with the keys of `ckptsync list --json`.

    Takes and raises what `pull` does; a run without versions gives an empty list.
    """
    named, _ = config.parse_run(run, project=project, entity=entity)
    with connections.environment_of(local=local):
        found: list[dict[str, Any]] = _ask(named, {"op": "list"})["versions"]
        return found


def status(output_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """What is durable of a training and what is at risk, with the keys of `ckptsync status --json`. Asks no server.

    Raises UsageError if there is no such folder.
    """
    return overview.report(resume.require_output_dir(Path(output_dir), create=False))


def verify(path: str | os.PathLike[str]) -> Verdict:
    """Check that a folder is a complete checkpoint: reads every byte that has a checksum, executes nothing.

    `verify(folder).complete` is the answer, `.problems` say why not, `.resumable` whether a training can resume from it exactly.
    Never raises for what it finds.
    """
    folder = Path(path).absolute()
    return validate(folder, Spool(folder.parent), deep=True)


@contextlib.contextmanager
def resumed_run(
    run_id: str,
    *,
    project: str | None = None,
    entity: str | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    local: bool = False,
    **init: Any,
) -> Iterator[tuple[Any, Path]]:
    """Continue a run: `with resumed_run("4kx81b2q", project="llama") as (run, checkpoint_dir): …`.

    The newest valid version is downloaded and verified first. Then the run is initialised with
    resume="must", and the version is noted among its inputs. Hand `checkpoint_dir` to
    `trainer.train(resume_from_checkpoint=…)`. The run is finished when the block ends; calling `run.finish()` before is fine.

    Args:
        run_id: RUN_ID or ENTITY/PROJECT/RUN_ID, with an optional :ALIAS.
        project: As in `pull`.
        entity: As in `pull`.
        output_dir: The Trainer's output_dir, in which the checkpoint is placed as checkpoint-N. Else it is in a temporary
            folder that is deleted after the block.
        local: As in `pull`, for the run as well.
        **init: Further arguments of `wandb.init`, such as `config` or `settings`.

    Raises:
        As `pull` does.
    """
    run, alias = config.parse_run(run_id, project=project, entity=entity)
    with contextlib.ExitStack() as stack:
        stack.enter_context(connections.environment_of(local=local))
        if output_dir is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ckptsync-", ignore_cleanup_errors=True)))
            found = _pulled(run, alias, folder / "checkpoint", model=False)
        else:
            found = _placed(run, alias, resume.require_output_dir(Path(output_dir), create=True))
        run = Run(**found["run"])
        live = stack.enter_context(wandb_run.resumed(run, found["qualified"], init))
        yield live, Path(found["path"])


def _pulled(run: Run, alias: str | None, target: Path, *, model: bool) -> dict[str, Any]:
    return _ask(run, {"op": "pull", "alias": alias, "destination": str(target), "model": model})


def _placed(run: Run, alias: str | None, output_dir: Path) -> dict[str, Any]:
    return _ask(run, {"op": "place", "alias": alias, "output_dir": str(output_dir)})


def _ask(run: Run, job: Mapping[str, Any]) -> dict[str, Any]:
    """Have one job done in a child process, and raise its error here."""
    if config.upload_mode() != "online":
        raise ConfigurationError("W&B is turned off by WANDB_MODE or WANDB_DISABLED", hint="Unset it to read from the store.")
    environment = {**connections.without_session(), **config.connection().environment()}
    with tempfile.TemporaryDirectory(prefix="ckptsync-", ignore_cleanup_errors=True) as private:
        child = Child(run, environment, Path(private))
        try:
            return child.ask({**job, "run": asdict(run)}, stall=lambda: STALL, on_progress=lambda _: None)
        finally:
            child.close()
