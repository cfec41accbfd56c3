"""The terminal of this process, lent to a process group that wants to read from it, as a shell lends it to a job.

A training runs in a process group of its own, and the kernel stops a group that reads from a terminal in the background.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_PAUSE = 1.0
"""Seconds until a group in the background, which can't get the terminal, may try again."""


class Terminal:
    """Lends the controlling terminal, if there is one, to the process group `group`."""

    def __init__(self, group: int) -> None:
        self._group = group
        self.lent = False
        """Whether the group has it, so that Ctrl-C and Ctrl-Z reach the group and not this process."""

    def group_stopped(self, number: int) -> None:
        """Let a group that this signal stopped go on, with the terminal if it is ours to give.

        Otherwise, and at Ctrl-Z, this process stops too, so that the shell learns of it, and both go on after its `fg` or `bg`.
        A SIGSTOP is somebody's intention and left alone.
        """
        if number == signal.SIGSTOP:
            return
        with _terminal() as terminal:
            if terminal is None:
                return
            wants_it = self.lent or number != signal.SIGTSTP
            if number == signal.SIGTSTP or not self._ours(terminal):
                self.take_back()
                # Not the signal that the training got: this process may pass that one on.
                os.killpg(0, signal.SIGSTOP)
            if self._ours(terminal) and wants_it:
                _bring_to_front(terminal, self._group)
                self.lent = True
            elif wants_it:
                # Nobody stopped this process: its own group has no shell that could.
                threading.Event().wait(_PAUSE)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, signal.SIGCONT)

    def take_back(self) -> None:
        """Give the terminal back to the group of this process, if it was lent."""
        if not self.lent:
            return
        self.lent = False
        with _terminal() as terminal, contextlib.suppress(OSError):
            if terminal is not None and os.tcgetpgrp(terminal) != os.getpgrp():
                _bring_to_front(terminal, os.getpgrp())

    def _ours(self, terminal: int) -> bool:
        return os.tcgetpgrp(terminal) in (os.getpgrp(), self._group)


@contextlib.contextmanager
def _terminal() -> Iterator[int | None]:
    """The controlling terminal, open; None if this process has none."""
    try:
        opened = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        yield None
        return
    try:
        yield opened
    finally:
        os.close(opened)


def _bring_to_front(terminal: int, group: int) -> None:
    # A process in the background that changes the foreground group is stopped, unless it blocks this signal.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        with contextlib.suppress(OSError):
            os.tcsetpgrp(terminal, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
