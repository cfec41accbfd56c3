"""Handlers for the signals of a preemption. Knows neither the Trainer nor wandb."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from ckptsync.trainer import forked_children

PREEMPTING = forked_children.SIGNALS


class Signals:
    """Notes a signal and defers the handlers that were installed before, so that the training can save first.

    Those are called later, in `hand_over`: many of them end the process, and the checkpoint would be lost. A second signal
    changes nothing: torchrun sends SIGTERM to the ranks that are still saving. A forked child has the earlier handlers.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._handler = self._note

    def install(self, numbers: Iterable[int] = PREEMPTING) -> bool:
        """Install the handlers. False outside the main thread, where Python can't."""
        self.received = None
        forked_children.undo_in_children(self, self._restore_in_child)
        for number in numbers:
            if signal.getsignal(number) is self._handler:
                continue
            try:
                self._previous[number] = signal.signal(number, self._handler)
            except ValueError:
                return False
        return True

    def hand_over(self) -> None:
        """Call the earlier handler of the received signal, once, if it was a function."""
        number, self.received = self.received, None
        previous = self._previous.get(number) if number is not None else None
        if callable(previous):
            previous(number, None)

    def release(self) -> None:
        """Restore the earlier handlers, except where another library has installed its own since."""
        for number, previous in self._previous.items():
            if signal.getsignal(number) is self._handler and previous is not None:
                signal.signal(number, previous)
        self._previous.clear()
        forked_children.undo_in_children(self, None)

    def _restore_in_child(self) -> None:
        for number, previous in self._previous.items():
            if signal.getsignal(number) is self._handler:
                # None stands for a handler that is no Python function, which can't be set from here.
                signal.signal(number, signal.SIG_DFL if previous is None else previous)
        self._previous.clear()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        _leave_closed_terminal()


def _leave_closed_terminal() -> None:
    """Point stdout and stderr to /dev/null if their terminal is gone: the next line of losses would raise EIO before the save."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError as error:
            if error.errno == errno.EIO:
                with Path(os.devnull).open("wb") as null:
                    os.dup2(null.fileno(), descriptor)
