"""Shields DataLoader workers from a SIGTERM to the whole process group, which systemd, SLURM and torchrun send.

A DataLoader worker ends at SIGTERM, and torch then raises in the training that it was killed (torch 2.13): the checkpoint that
the signal asked for would never be saved.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import mmap
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from ckptsync.trainer import forked_children

_CHECK_SECONDS = 0.5


def shield() -> None:
    """Make the workers that DataLoaders fork from now on ignore SIGTERM until their parent has asked them to end.

    It asks by an event of torch, and only a worker that doesn't end then gets SIGTERM from it. The signal is caught, neither
    blocked nor ignored, because what a worker starts would inherit that. Spawned workers, the default on macOS, are not shielded.
    """
    from torch.utils.data._utils import signal_handling, worker

    original = worker._worker_loop
    if getattr(original, "_ckptsync", False) or "done_event" not in inspect.signature(original).parameters:
        return
    exiting, trainer = mmap.mmap(-1, 1), os.getpid()

    @atexit.register
    def announce_end() -> None:
        # A child of the training may run this too.
        if os.getpid() == trainer:
            exiting[0] = 1

    @functools.wraps(original)
    def worker_loop(*args: Any, **kwargs: Any) -> None:
        # A loader that a child of the training makes is none of ours.
        if os.getppid() == trainer:
            done = inspect.signature(original).bind(*args, **kwargs).arguments["done_event"]
            _defer(signal_handling, done.is_set, lambda: bool(exiting[0]))
        original(*args, **kwargs)

    worker_loop._ckptsync = True  # type: ignore[attr-defined]
    worker._worker_loop = worker_loop


def _defer(torch_signals: Any, asked: Callable[[], bool], exiting: Callable[[], bool]) -> None:
    """Ignore SIGTERM in this worker until it is asked to end; from then on torch's own handler decides."""
    install = torch_signals._set_worker_signal_handlers

    def set_handlers() -> None:
        install()
        signal.signal(signal.SIGTERM, lambda *_: None)
        forked_children.undo_in_children(_defer, install)
        threading.Thread(target=_follow_parent, args=(install, asked, exiting), daemon=True).start()

    torch_signals._set_worker_signal_handlers = set_handlers


def _follow_parent(restore: Callable[[], None], asked: Callable[[], bool], exiting: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not asked():
        if exiting():
            # The parent is at its end and about to wait for this process.
            os._exit(0)
        pause.wait(_CHECK_SECONDS)
    restore()
