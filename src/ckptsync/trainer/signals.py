"""The signals that mean "this machine goes away". Knows neither the Trainer nor wandb."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from types import FrameType
from typing import Any

PREEMPTING = frozenset({signal.SIGTERM, signal.SIGUSR1})


class Signals:
    """Notes that a signal came and lets the training save first; who had the signal before gets it after that.

    A handler that another library installed is called late, in `hand_over`, not at once: many of them end the process, and the
    checkpoint would be lost. A second signal changes nothing: torchrun sends SIGTERM to the ranks that are still saving.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._handler = self._note

    def install(self, numbers: Iterable[int] = PREEMPTING) -> bool:
        """Take the signals over. False outside the main thread, where Python can't."""
        self.received = None
        for number in numbers:
            if signal.getsignal(number) is self._handler:
                continue
            try:
                self._previous[number] = signal.signal(number, self._handler)
            except ValueError:
                return False
        return True

    def hand_over(self) -> None:
        """Call the handler that the received signal had before, once, if that was a function."""
        number, self.received = self.received, None
        previous = self._previous.get(number) if number is not None else None
        if callable(previous):
            previous(number, None)

    def release(self) -> None:
        """Put back what was there, unless somebody else has taken the signal since."""
        for number, previous in self._previous.items():
            if signal.getsignal(number) is self._handler and previous is not None:
                signal.signal(number, previous)
        self._previous.clear()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
