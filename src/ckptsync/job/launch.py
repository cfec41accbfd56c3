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
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ckptsync import processes, record
from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.errors import UsageError
from ckptsync.trainer import OUTPUT_DIR, RESUME_FROM, hook_path

PLACEHOLDER = "{checkpoint}"

ASKING = signal.SIGTERM
"""The signal by which a training is asked to save and to leave, where the user sent no other one."""


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


def ranks(output_dir: Path) -> list[int]:
    """The training processes of an output folder on this machine that carry a `SyncCallback`, as far as they live."""
    entries = record.read(output_dir).values.get("processes")
    found = [processes.living(entry) for entry in entries] if isinstance(entries, list) else []
    return [pid for pid in found if pid is not None]


def left_running(output_dir: Path) -> LeftRunning | None:
    """The training that a watcher which is gone had started in this folder, if it still runs."""
    left = LeftRunning(output_dir)
    return left if left.members() else None


class Training:
    """The running command and all that it started in its group."""

    LINGER = 120.0
    """Seconds that a trainer which outlives its command may take to save and leave. Then it is killed."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], *, cwd: Path | None = None) -> None:
        try:
            self._process = subprocess.Popen(list(command), env=dict(environ), cwd=cwd, process_group=0)
        except OSError as error:
            raise UsageError(
                f"{error.filename or command[0]}: {error.strerror}", hint="Check the training's command and folder."
            ) from error
        self.pid = self._process.pid
        folder = environ.get(OUTPUT_DIR)
        self._output_dir = Path(folder) if folder else None
        self._over = threading.Event()

    def signal(self, number: int) -> None:
        """Send a signal to every process of the group; none is left to get it once all have ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def ask(self, number: int = ASKING) -> None:
        """Ask the training to save and to leave. Where the ranks are known, what started them goes when they are gone."""
        asked = _ask(self.pid, ranks(self._output_dir) if self._output_dir else [], number)
        if asked:
            threading.Thread(target=self._see_off, args=(asked,), daemon=True).start()

    def ended(self) -> bool:
        """Whether the command and all that it had started have ended. True only once somebody waits for it."""
        return self._over.is_set()

    def wait(self, woken: threading.Event | None = None) -> int | None:
        """Wait for the end and return the exit code as a shell would: 128 + N for a signal. Sets `woken` then."""
        code = self._process.wait()
        if not self._over.is_set():
            # What the command left running would go on saving beside the next attempt.
            self.signal(signal.SIGTERM)
            _outwait(self._members, self.LINGER)
            for pid in self._members():
                _kill(pid, signal.SIGKILL)
            self._over.set()
        if woken:
            woken.set()
        return code if code >= 0 else 128 - code

    def _members(self) -> list[int]:
        """Who is still there: the group, and the ranks, to each of which torchrun gives a session of its own."""
        known = ranks(self._output_dir) if self._output_dir else []
        return [*processes.group_members(self.pid), *known]

    def _see_off(self, asked: Sequence[int]) -> None:
        """When the ranks are gone, end what started them: torchrun with --max-restarts would start them anew."""
        born = {pid: processes.start_time(pid) for pid in asked}
        _outwait(lambda: [pid for pid in asked if born[pid] is not None and processes.start_time(pid) == born[pid]], None)
        if not self._over.is_set():
            self.signal(signal.SIGTERM)


class LeftRunning:
    """A training that somebody else started: it can be asked and waited for, but nobody will know its exit code."""

    def __init__(self, output_dir: Path) -> None:
        self._output_dir = output_dir
        self._leader = processes.living(record.read(output_dir).values.get("training"))

    def members(self) -> list[int]:
        """Its living processes, as far as they are known."""
        led = [self._leader, *processes.group_members(self._leader)] if self._leader and self._leader_lives() else []
        return list(dict.fromkeys([*led, *ranks(self._output_dir)]))

    def signal(self, number: int) -> None:
        """Send a signal to every process of it."""
        for pid in self.members():
            _kill(pid, number)

    def ask(self, number: int = ASKING) -> None:
        """Ask it to save and to leave."""
        _ask(self._leader, ranks(self._output_dir), number)

    def ended(self) -> bool:
        """Whether none of it is left."""
        return not self.members()

    def wait(self, woken: threading.Event | None = None) -> int | None:
        """Wait until none of it is left. None: nobody knows the exit code of a process that it didn't start."""
        _outwait(self.members, None)
        if woken:
            woken.set()
        return None

    def _leader_lives(self) -> bool:
        return processes.living(record.read(self._output_dir).values.get("training")) is not None


def _ask(leader: int | None, known: Sequence[int], number: int) -> list[int]:
    """Signal those that will save: the ranks themselves where they have a handler, and those are returned; else the group.

    torchrun kills its ranks 30 s after a SIGTERM of its own, however long the save takes (torch 2.13), and SIGUSR1 ends it as it
    ends a shell: so what only stands between us and the ranks gets no signal. Nobody gets a SIGUSR1 that it would die of.
    """
    ready = [pid for pid in known if processes.catches(pid, number)]
    able = ready or [pid for pid in processes.group_members(leader) if processes.catches(pid, number)] if leader else ready
    if number == signal.SIGTERM and not ready and leader:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, number)
    elif able:
        for pid in able:
            _kill(pid, number)
    elif number != signal.SIGTERM:
        return _ask(leader, known, signal.SIGTERM)
    return ready


def _outwait(living: Callable[[], Sequence[int]], seconds: float | None) -> None:
    """Wait until nobody is left, or for so many seconds."""
    deadline = None if seconds is None else time.monotonic() + seconds
    pause = threading.Event()
    while living() and (deadline is None or time.monotonic() < deadline):
        pause.wait(0.1)


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
