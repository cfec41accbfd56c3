"""How watching is asked to end: one event for everything that waits, set by a caller or by a signal."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from ckptsync import signals


class Stop:
    """One event for everything that waits. The first signal requests the end, the second one ends the process at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.wake = threading.Event()
        self.hung_up = threading.Event()
        self.on_second: Callable[[], None] = lambda: None
        self._repeats = signals.Repeats()
        self._reloads = not os.isatty(0)

    def request(self) -> None:
        """End the watching: complete checkpoints are pinned, and the current upload is finished."""
        self.event.set()
        self.wake.set()

    @contextlib.contextmanager
    def on_signals(self, *numbers: signal.Signals) -> Iterator[None]:
        """While the block lasts, the first of these signals requests the end and the second one exits.

        SIGHUP asks for the settings to be read again, except on a terminal, where it means that the terminal is gone: that is
        handled as these signals are.
        """
        with contextlib.ExitStack() as stack:
            # Under nohup too: it is the hang-up that is ignored, and this isn't one.
            if self._reloads:
                stack.enter_context(signals.handled([signal.SIGHUP], self._handle, though_ignored=True))
            elif numbers:
                numbers = (*numbers, signal.SIGHUP)
            stack.enter_context(signals.handled(numbers, self._handle))
            yield

    def _handle(self, number: int) -> None:
        if number == signal.SIGHUP and self._reloads:
            self.hung_up.set()
            self.wake.set()
            return
        insisted = self._repeats.insisted(number)
        if not self.event.is_set():
            self.request()
        elif insisted:
            self.on_second()
            os._exit(128 + number)
