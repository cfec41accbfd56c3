"""What Python programs and notebooks call. Imports neither torch, transformers nor wandb.

Downloads run in a process of their own, since the wandb client's settings belong to a whole process and this one trains.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckptsync import config, record
from ckptsync.checkpoint import Run, Verdict
from ckptsync.errors import CkptsyncError, ConfigurationError, UsageError
from ckptsync.restore import resume
from ckptsync.restore.download import require_free
from ckptsync.trainer import wandb_run
from ckptsync.upload.child import Child
from ckptsync.upload.spool import Spool
from ckptsync.upload.validation import validate

STALL = 300.0
"""Seconds without a byte after which a download counts as hung."""


def pull(
    run: str, dest: str | os.PathLike[str], *, model: bool = False, project: str | None = None, entity: str | None = None
) -> Path:
    """Download a version into a folder that is new or empty, verify every byte, and return the folder.

    Args:
        run: RUN_ID or ENTITY/PROJECT/RUN_ID, with :ALIAS (best, step-500, v3) for one version; else the newest valid
            one.
        dest: The folder. It appears in one step; an interrupted pull continues.
        model: Download the final model (`model-<run_id>`) instead of a checkpoint.
        project: The W&B project; else WANDB_PROJECT, else huggingface.
        entity: The W&B entity; else WANDB_ENTITY, else your default one.

    Raises:
        NotFoundError: There is no such run or version.
        IntegrityError: No version is valid.
        UsageError: The folder isn't empty, or `run` is malformed.
        ConfigurationError: There are no credentials, or the server refuses them.
        TransientStoreError: The store is unreachable.
    """
    target = require_free(Path(dest))
    named, alias = config.parse_run(run, project=project, entity=entity)
    return Path(_pulled(named, alias, target, model=model)["path"])


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
        **init: Further arguments of `wandb.init`, such as `config` or `settings`.

    Raises:
        As `pull` does.
    """
    run, alias = config.parse_run(run_id, project=project, entity=entity)
    with contextlib.ExitStack() as stack:
        if output_dir is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ckptsync-", ignore_cleanup_errors=True)))
            found = _pulled(run, alias, folder / "checkpoint", model=False)
        else:
            found = _placed(run, alias, resume.require_output_dir(Path(output_dir), create=True))
        run = Run(**found["run"])
        live = stack.enter_context(wandb_run.resumed(run, found["qualified"], init))
        yield live, Path(found["path"])


@dataclass(frozen=True, slots=True)
class Watching:
    """A background watcher. `log` is the file that it writes to."""

    output_dir: Path
    run: Run
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def alive(self) -> bool:
        """Whether it is still running."""
        return self.process.poll() is None

    def stop(self, *, timeout: float | None = None) -> int:
        """Upload the complete checkpoints, stop the watcher and return its exit code; None waits as long as that takes.

        After `timeout` seconds it is killed; what it hasn't uploaded stays queued for the next start.
        """
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextlib.contextmanager
def watch_in_background(
    output_dir: str | os.PathLike[str],
    *,
    run_id: str | None = None,
    project: str | None = None,
    entity: str | None = None,
    flush_timeout: float | None = 600.0,
) -> Iterator[Watching]:
    """Upload the checkpoints of an output_dir while the block lasts: `with watch_in_background("out"): trainer.train()`.

    It is a separate process, so neither `run.finish()` nor the end of this interpreter has to wait for it. It exits when this
    process does, after uploading what is queued. The end of the block waits until everything is durable.

    Args:
        output_dir: The Trainer's output_dir; created if missing.
        run_id: The run; else the active one of this process, else WANDB_RUN_ID, else run.json.
        project: As in `pull`; else that of the active run.
        entity: As in `pull`; else that of the active run.
        flush_timeout: Seconds that the end of the block may wait; None for as long as it takes.

    Raises:
        UsageError: The run id is unknown.
        CkptsyncError: The watcher ended with an error; the message is its last line.
    """
    folder = resume.require_output_dir(Path(output_dir), create=True)
    run = _run_here(folder, run_id, project, entity)
    log = folder / record.FOLDER / "watch.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = ["watch", str(folder), "--run-id", run.run_id, "--project", run.project, "--pid", str(os.getpid())]
    words += ["--entity", run.entity] if run.entity else []
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ckptsync", *words],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # A Ctrl-C in the notebook interrupts the training, not the uploads.
            start_new_session=True,
        )
    watching = Watching(folder, run, log, process)
    try:
        yield watching
    finally:
        code = watching.stop(timeout=flush_timeout)
    if code not in (0, -signal.SIGKILL):
        raise CkptsyncError(f"the watcher ended with {code}: {_last_line(log)}", hint=f"See {log}.")


def _run_here(output_dir: Path, run_id: str | None, project: str | None, entity: str | None) -> Run:
    """The run that trains in this folder, from the arguments, the active run, the environment and run.json."""
    active = getattr(sys.modules.get("wandb"), "run", None)
    known = record.read(output_dir)
    found = run_id or getattr(active, "id", None) or os.environ.get("WANDB_RUN_ID") or known.text("run_id")
    if not found:
        raise UsageError("which run?", hint="Call wandb.init() before, or give run_id.")
    project = project or getattr(active, "project", None) or os.environ.get("WANDB_PROJECT") or known.text("project")
    return config.make_run(found, project=project, entity=entity or getattr(active, "entity", None) or known.text("entity"))


def _pulled(run: Run, alias: str | None, target: Path, *, model: bool) -> dict[str, Any]:
    return _ask(run, {"op": "pull", "alias": alias, "destination": str(target), "model": model})


def _placed(run: Run, alias: str | None, output_dir: Path) -> dict[str, Any]:
    return _ask(run, {"op": "place", "alias": alias, "output_dir": str(output_dir)})


def _ask(run: Run, job: Mapping[str, Any]) -> dict[str, Any]:
    """Have one job done in a child process, and raise its error here."""
    if config.upload_mode() != "online":
        raise ConfigurationError("W&B is off by WANDB_MODE or WANDB_DISABLED", hint="Unset it to read from the store.")
    environment = {**_environment(), **config.connection().environment()}
    with tempfile.TemporaryDirectory(prefix="ckptsync-", ignore_cleanup_errors=True) as private:
        child = Child(run, environment, Path(private))
        try:
            return child.ask({**job, "run": asdict(run)}, stall=STALL, on_progress=lambda _: None)
        finally:
            child.close()


def _environment() -> dict[str, str]:
    """This environment without the variables that would make a child join this process's wandb session."""
    return {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"
