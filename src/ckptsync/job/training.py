"""A running training: started by this process, or found running. Signals reach all of its processes.

`trl` and `accelerate launch` start the trainer as a child and don't forward SIGTERM (measured): a signal to the started process
alone would orphan a trainer that goes on saving. So the whole process group gets it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ckptsync import descriptors, processes, record, signals
from ckptsync.errors import UsageError
from ckptsync.job.terminal import Terminal
from ckptsync.trainer import ATTEMPT, OUTPUT_DIR

log = logging.getLogger(__name__)

SAVE_SIGNAL = signal.SIGTERM
"""The signal that asks a training to save and exit, unless the user sent another one."""


SECOND_LOOK = 0.2
"""Seconds to the second look for what a command left running, where no training has announced itself."""

FOLLOW_PAUSE = 0.5
"""Seconds between two looks at a training that outlived its command."""


class Training(Protocol):
    """A training, whoever started it."""

    outlived: bool
    """Whether it outlived the command that started it, whose exit code then says nothing of it."""

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes."""
        ...

    def request_save(self, number: int = SAVE_SIGNAL) -> None:
        """Ask it to save and exit."""
        ...

    def suspend(self) -> None:
        """Stop it and this process, as Ctrl-Z asks, until the shell continues both."""
        ...

    def ended(self) -> bool:
        """Whether all of its processes have ended."""
        ...

    def wait(self, woken: threading.Event | None = None) -> int | None:
        """Wait for its end and return the exit code, None if that is unknown. Then sets `woken`."""
        ...


def ranks(output_dir: Path) -> list[int]:
    """The living processes on this machine that train into an output folder with a `SyncCallback`."""
    entries = record.read(output_dir).values.get("processes")
    found = [processes.living(entry) for entry in entries] if isinstance(entries, list) else []
    return [pid for pid in found if pid is not None]


def _announced(output_dir: Path) -> Iterator[tuple[int, str]]:
    """Pid and start time of each process that announced itself as a rank, whether it still lives or not."""
    entries = record.read(output_dir).values.get("processes")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping) and processes.is_visible(entry):
            pid, born = entry.get("pid"), entry.get("born")
            if isinstance(pid, int) and isinstance(born, str) and born.isdigit():
                yield pid, born


def find_running(output_dir: Path) -> FoundTraining | None:
    """The training that an earlier ckptsync started in this folder, if it is still running."""
    found = FoundTraining(output_dir)
    return found if found.members() else None


class StartedTraining:
    """A command that this process starts in a process group of its own, with everything that the command starts.

    When it reads from the terminal, it gets the terminal until it ends. Where the command exits with 0 and leaves the training
    running (`setsid python`, a daemon, `python &`), that is followed to its end.
    """

    STARTUP = 120.0
    """Seconds that what the command leaves running has to load torch, or to begin to train."""

    PREPARATION = 3600.0
    """The same for a Python process: it may read a data set before it loads torch."""

    IMPORTS = 30.0
    """Seconds that a Python process which follows a training has to load torch, by which it counts as another one."""

    LINGER = 120.0
    """Seconds that processes which outlive the command have to save and exit before they are killed."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], *, cwd: Path | None = None) -> None:
        try:
            with signals.as_inherited():
                self._process = subprocess.Popen(
                    list(command), env=dict(environ), cwd=cwd, process_group=0, pass_fds=descriptors.inherited()
                )
        except OSError as error:
            raise UsageError(
                f"cannot start the training: {error.filename or command[0]}: {error.strerror}",
                hint="Check the training's command and working directory.",
            ) from error
        self.pid = self._process.pid
        self._terminal = Terminal(self.pid)
        folder = environ.get(OUTPUT_DIR)
        self._output_dir = Path(folder) if folder else None
        self._attempt = environ.get(ATTEMPT)
        self._announced: dict[int, str | None] = {}
        self._followed: list[int] = []
        self._following = False
        self.outlived = False
        self._over = threading.Event()

    def signal(self, number: int) -> None:
        """Send a signal to every process of the group, if any is left, and to the training that outlived the command."""
        if self._following:
            for pid in {*self._group(), *self._followed}:
                _kill(pid, number)
        else:
            _kill_group(self.pid, number)
        if number == signal.SIGKILL:
            self._terminal.take_back()

    def request_save(self, number: int = SAVE_SIGNAL) -> None:
        """Ask the training to save and exit. If its ranks are known, their launcher is ended after them."""
        signaled = _request_save(None if self._following else self.pid, self._ranks(), number)
        if signaled:
            threading.Thread(target=self._end_launcher_after, args=(signaled,), daemon=True).start()
        elif self._following:
            self.signal(signal.SIGTERM)

    def suspend(self) -> None:
        """Stop the training. When it has stopped, `wait` stops this process too."""
        if self._following:
            # It left the terminal.
            signal.raise_signal(signal.SIGSTOP)
        else:
            self.signal(signal.SIGTSTP)

    def ended(self) -> bool:
        """Whether the command and everything that it started have ended. Becomes true only in `wait`."""
        return self._over.is_set()

    def wait(self, woken: threading.Event | None = None) -> int | None:
        """Wait for the end and return the exit code as a shell would: 128 + N for a signal. Then sets `woken`."""
        code = self._wait_for_command()
        if self._terminal.lent:
            self._terminal.take_back()
            for number in (signal.SIGINT, signal.SIGQUIT):
                # Ctrl-C or Ctrl-\ reached the training alone, and ends the whole job.
                if code in (-number, 128 + number):
                    signals.send_here(number)
        if code == 0 and not self._over.is_set():
            self._follow()
        if not self._over.is_set():
            # What the command left running would go on saving beside the next attempt.
            if left := self._left(code):
                log.warning("the command has exited: ending what it left running (pid %s)", ", ".join(map(str, left)))
            for pid in left:
                _kill(pid, signal.SIGTERM)
            _wait_until_gone(lambda: self._left(code), self.LINGER)
            for pid in self._left(code):
                _kill(pid, signal.SIGKILL)
            self._over.set()
        if woken:
            woken.set()
        return code if code >= 0 else 128 - code

    def _wait_for_command(self) -> int:
        while self._process.returncode is None:
            try:
                _, status = os.waitpid(self.pid, os.WUNTRACED)
            except ChildProcessError:
                return self._process.wait()
            if os.WIFSTOPPED(status):
                self._terminal.group_stopped(os.WSTOPSIG(status))
            else:
                self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode

    def _follow(self) -> None:
        """Wait for the end of a training that the command left running, if it did."""
        pause, since = threading.Event(), time.monotonic()
        if not self._left_training(0.0) and not self._announced:
            # A process that is just being replaced (exec) shows no environment for a moment.
            pause.wait(SECOND_LOOK)
        while found := self._left_training(time.monotonic() - since):
            if not self._following:
                log.warning("the command has exited with 0, but left pid %s running: following that", ", ".join(map(str, found)))
            # What has ended by then, the command may well have waited for.
            self._followed, self._following = found, True
            self.outlived = self.outlived or not self._announced or self._trains(found)
            pause.wait(FOLLOW_PAUSE)
        self._followed = []

    def _left_training(self, waited: float) -> list[int]:
        """The processes that go on training `waited` seconds after the command has exited, in whatever group or session they are.

        Once a `train()` of this start has announced its processes, those are the training, and what started them: a launcher
        may start them again. Before, it may be any process that inherited the attempt's id, for a time; then only one that has
        torch loaded and left the group, as setsid and a daemon do. After, only a Python process that is younger, and has torch
        loaded or may still load it: a second phase. So a tensorboard, or whatever else is left to run for good, isn't waited for.
        """
        if self._attempt is None or self._output_dir is None:
            return []
        if record.read(self._output_dir).announced:
            self._announced |= {pid: born for pid, born in _announced(self._output_dir) if pid not in self._announced}
            for rank in self._ranks():
                for pid in processes.ancestors_started_with(rank, ATTEMPT, self._attempt):
                    self._announced.setdefault(pid, processes.start_time(pid))
        trained = {pid: born for pid, born in self._announced.items() if born is not None}
        if living := [pid for pid, born in trained.items() if processes.start_time(pid) == born]:
            return living
        found = processes.started_with(ATTEMPT, self._attempt)
        if trained:
            last = max(map(int, trained.values()))
            younger = [pid for pid in found if int(processes.start_time(pid) or 0) > last and self._is_preparing(pid, waited)]
            return [pid for pid in younger if processes.has_loaded(pid, "libtorch") or processes.age(pid) < self.IMPORTS]
        group = self._group()
        detached = [pid for pid in found if pid not in group and processes.has_loaded(pid, "libtorch")]
        return found if waited < self.STARTUP else [*{*detached, *(pid for pid in found if self._is_preparing(pid, waited))}]

    def _trains(self, found: Sequence[int]) -> bool:
        """Whether one of these processes is a rank that announced itself, or started one."""
        return any(pid in self._announced for pid in found)

    def _is_preparing(self, pid: int, waited: float) -> bool:
        return waited < self.PREPARATION and processes.is_python(pid)

    def _group(self) -> list[int]:
        """The living members of the process group. Once the command is gone, another group may come to have its number."""
        members = processes.group_members(self.pid)
        own = processes.started_with(ATTEMPT, self._attempt) if self._following and members and self._attempt else members
        return [pid for pid in members if pid in own]

    def _ranks(self) -> list[int]:
        return ranks(self._output_dir) if self._output_dir else []

    def _members(self) -> list[int]:
        """The living processes: the group, and the ranks, which torchrun starts in sessions of their own."""
        return [*self._group(), *self._ranks()]

    def _left(self, code: int) -> list[int]:
        """The living processes that the command left behind and that may train: with a failed one, those too that still load.

        What has announced no rank yet may be in a session of its own. After a command that exited with 0, `_follow` finds that.
        """
        loading: list[int] = []
        if code != 0 and self._attempt and self._output_dir and not record.read(self._output_dir).announced:
            loading = [pid for pid in processes.started_with(ATTEMPT, self._attempt) if processes.is_python(pid)]
        return list(dict.fromkeys([*self._members(), *loading]))

    def _end_launcher_after(self, signaled: Sequence[int]) -> None:
        """When these ranks are gone, end their launcher: torchrun with --max-restarts would start them again."""
        born = {pid: processes.start_time(pid) for pid in signaled}
        _wait_until_gone(
            lambda: [pid for pid in signaled if born[pid] is not None and processes.start_time(pid) == born[pid]], None
        )
        if not self._over.is_set():
            self.signal(signal.SIGTERM)


class FoundTraining:
    """A training that another process started. Its exit code can't be known."""

    outlived = True

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

    def request_save(self, number: int = SAVE_SIGNAL) -> None:
        """Ask it to save and exit."""
        _request_save(self._leader, ranks(self._output_dir), number)

    def suspend(self) -> None:
        """Stop this process alone: another terminal started the training."""
        signal.raise_signal(signal.SIGSTOP)

    def ended(self) -> bool:
        """Whether all of its processes have ended."""
        return not self.members()

    def wait(self, woken: threading.Event | None = None) -> int | None:
        """Wait until all of its processes have ended. Returns None: only a parent learns the exit code."""
        _wait_until_gone(self.members, None)
        if woken:
            woken.set()
        return None

    def _leader_lives(self) -> bool:
        return processes.living(record.read(self._output_dir).values.get("training")) is not None


def _request_save(leader: int | None, known: Sequence[int], number: int) -> list[int]:
    """Signal the ranks that have a handler, and return them; if there is none, signal the group.

    torchrun kills its ranks 30 s after it gets SIGTERM, however long the save takes (torch 2.13), and SIGUSR1 ends it, as it ends
    a shell: so a launcher between us and the ranks gets no signal. No process gets a SIGUSR1 that it would die of.
    """
    ready = [pid for pid in known if processes.catches(pid, number)]
    able = ready or [pid for pid in processes.group_members(leader) if processes.catches(pid, number)] if leader else ready
    if number == signal.SIGTERM and not ready and leader:
        _kill_group(leader, number)
    elif able:
        for pid in able:
            _kill(pid, number)
    elif number != signal.SIGTERM:
        return _request_save(leader, known, signal.SIGTERM)
    return ready


def _wait_until_gone(living: Callable[[], Sequence[int]], seconds: float | None) -> None:
    """Wait until no process is left, or for so many seconds."""
    deadline = None if seconds is None else time.monotonic() + seconds
    pause = threading.Event()
    while living() and (deadline is None or time.monotonic() < deadline):
        pause.wait(0.1)


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _kill_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
