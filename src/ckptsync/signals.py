"""Signals, handled in a thread of their own.

A handler in Python runs in the main thread alone, and only after its system call. A signal that arrives just before the main
thread enters waitpid(2) or joins a thread would be handled when that ends: after the training, days later. The handler that the
interpreter has in C writes the number of each signal to a file descriptor at once, whatever the main thread does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator

log = logging.getLogger(__name__)

Handler = Callable[[int], None]

ANNOUNCING = (signal.SIGUSR1, signal.SIGUSR2)
"""What batch systems announce the end by: SLURM by the one that --signal names, LSF by SIGUSR2, 10 minutes before it kills."""

INSIST = 0.3
"""Seconds within which the same signal again is an echo: a wrapper in a group that was signaled passes it on."""

_handlers: dict[int, Handler] = {}
_inherited: dict[int, object] = {}


@contextlib.contextmanager
def handled(numbers: Iterable[int], handle: Handler, *, though_ignored: bool = False) -> Iterator[None]:
    """Call `handle(number)`, in another thread, for each of these signals that arrives while the block runs.

    For the main thread alone. Blocks may be nested, with other signals in each. What this process was started to ignore (SIGINT
    by a script's `&`, SIGHUP by nohup) stays ignored, unless `though_ignored` says that it has another meaning here.
    """
    mine = {number: handle for number in numbers if though_ignored or signal.getsignal(number) is not signal.SIG_IGN}
    first = not _handlers
    _handlers.update(mine)
    with _dispatching() if first else contextlib.nullcontext():
        before = {number: signal.signal(number, _leave_to_the_thread) for number in mine}
        _inherited.update(before)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
                _handlers.pop(number)
                _inherited.pop(number)


def send_here(number: int) -> None:
    """Have this process handle a signal before this returns, as if it had come from outside."""
    if handle := _handlers.get(number):
        handle(number)
    else:
        signal.raise_signal(number)


def go_on(number: int) -> None:
    """Handle a signal that announces the end where the work ends by itself: go on, so that it is done by then."""
    log.warning("%s announces the end: going on, so that what is queued becomes durable", signal.Signals(number).name)


@contextlib.contextmanager
def as_inherited() -> Iterator[None]:
    """What this process was started to ignore is ignored while the block runs, so that a program started in it inherits that."""
    ignored = [number for number, handler in _inherited.items() if handler is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, _leave_to_the_thread)


class Repeats:
    """Tells a person who insists from the echo of one signal."""

    def __init__(self) -> None:
        self._first: dict[int, float] = {}

    def insisted(self, number: int) -> bool:
        """Note a signal. Whether it had come before, and long enough ago."""
        return time.monotonic() - self._first.setdefault(number, time.monotonic()) > INSIST


def _leave_to_the_thread(_number: int, _frame: object) -> None:
    """Without a handler in Python the signal's default action would end the process."""


@contextlib.contextmanager
def _dispatching() -> Iterator[None]:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    thread = threading.Thread(target=_dispatch, args=(reading,), name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writing)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        thread.join()
        os.close(reading)


def _dispatch(reading: int) -> None:
    while numbers := os.read(reading, 64):
        for number in numbers:
            if handle := _handlers.get(number):
                handle(number)
