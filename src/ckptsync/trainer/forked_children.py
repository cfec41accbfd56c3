"""What ckptsync changes in this process is undone in every child that it forks: a pool or a data worker must not inherit it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

SIGNALS = frozenset({signal.SIGTERM, signal.SIGUSR1})
"""The signals whose handlers ckptsync changes."""

_undo: dict[Any, Callable[[], None]] = {}
_registered = False
_thread = threading.local()


def undo_in_children(key: Any, undo: Callable[[], None] | None) -> None:
    """Call `undo` in every child that is forked from now on, before anything else there. None takes it back."""
    global _registered
    if undo is None:
        _undo.pop(key, None)
        return
    _undo[key] = undo
    if not _registered:
        _registered = True
        os.register_at_fork(before=_hold, after_in_parent=_let_through, after_in_child=_undo_all)


def _hold() -> None:
    # A signal that reached the child before its handlers are restored would be lost, and Process.terminate() with it.
    _thread.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if _undo else None


def _let_through() -> None:
    if _thread.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _thread.mask)


def _undo_all() -> None:
    while _undo:
        with contextlib.suppress(Exception):
            _undo.popitem()[1]()
    _let_through()
