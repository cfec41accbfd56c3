"""Starts the training in a process group of its own and passes signals on to all of it. Knows no store.

`trl` and `accelerate launch` start the trainer as a child and don't pass SIGTERM on (measured): a signal to the process that we
started would leave the trainer behind, still saving. So the whole group gets it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.errors import UsageError
from ckptsync.trainer import OUTPUT_DIR, RESUME_FROM, hook_path

PLACEHOLDER = "{checkpoint}"


def fill(command: Sequence[str], checkpoint: Path | None) -> list[str]:
    """The command with `{checkpoint}` replaced by the path. Raises UsageError where there is none to put in."""
    if checkpoint is None and any(PLACEHOLDER in word for word in command):
        raise UsageError(
            f"the command asks for {PLACEHOLDER}, but there is nothing to resume from",
            hint="Leave the placeholder out: the hook hands the checkpoint over by itself.",
        )
    return [word.replace(PLACEHOLDER, str(checkpoint)) for word in command]


def environment(
    run: Run,
    connection: Connection | None,
    output_dir: Path,
    *,
    checkpoint: Path | None,
    exists: bool,
    hook: bool = True,
    base: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """What the training is started with: the run that it has to be, and the hook that hands over the checkpoint.

    `exists` says that the run is on the server already, and then it must be that one and no new one.
    WANDB_SERVICE goes, or the training would share our wandb-core and die with it (wandb 0.31, measured). WANDB_LOG_MODEL is
    false, since uploading checkpoints is our work.
    """
    values = {key: value for key, value in base.items() if key not in ("WANDB_SERVICE", RESUME_FROM, OUTPUT_DIR)}
    values |= connection.environment() if connection else {}
    values |= {
        "WANDB_RUN_ID": run.run_id,
        "WANDB_RESUME": "must" if exists else "allow",
        "WANDB_PROJECT": run.project,
        "WANDB_LOG_MODEL": "false",
        OUTPUT_DIR: str(output_dir),
    }
    if run.entity:
        values["WANDB_ENTITY"] = run.entity
    if hook:
        values["PYTHONPATH"] = os.pathsep.join(filter(None, [str(hook_path()), base.get("PYTHONPATH")]))
        if checkpoint:
            values[RESUME_FROM] = str(checkpoint)
    return values


class Training:
    """The running command and all that it started in its group."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], *, cwd: Path | None = None) -> None:
        try:
            self._process = subprocess.Popen(list(command), env=dict(environ), cwd=cwd, process_group=0)
        except OSError as error:
            raise UsageError(
                f"{error.filename or command[0]}: {error.strerror}", hint="Check the training's command and folder."
            ) from error
        self.pid = self._process.pid

    def signal(self, number: int) -> None:
        """Send a signal to every process of the group; none is left to get it once all have ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def ended(self) -> bool:
        """Whether the command itself has ended."""
        return self._process.poll() is not None

    def wait(self, woken: threading.Event | None = None) -> int:
        """Wait for the end and return the exit code as a shell would: 128 + N for a signal. Sets `woken` then."""
        code = self._process.wait()
        # What the command left running in its group would go on saving beside the next attempt.
        self.signal(signal.SIGTERM)
        if woken:
            woken.set()
        return code if code >= 0 else 128 - code
