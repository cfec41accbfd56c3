"""Interleaved rounds: A B A B, so that whatever else the machine does meets every contender alike."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Mapping

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of madvise(2), which Python has no name for."""

MEMORY = 4 * 10**9
"""Bytes: 2 GB are read and 2 GB written."""

Contender = Callable[[], float]
"""One measurement, in whatever unit; most give seconds."""


def interleaved(contenders: Mapping[str, Contender], rounds: int, *, memory: int = 0) -> dict[str, list[float]]:
    """So many rounds of every contender in turn, with what the one before wrote out of the way of the next.

    `memory` is how many bytes of files each fills: so much is held for a moment before.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            os.sync()
            _warm(memory)
            found[name].append(measure())
    return found


def _warm(memory: int) -> None:
    """The host of a virtual machine takes back what lies free, and to touch 2 GB of that again takes from 1 to 6 s (measured)."""
    if memory:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        # Where the kernel doesn't know this (before 5.14), memory stays as it is.
        with mmap.mmap(-1, min(memory, free // 2)) as held, contextlib.suppress(OSError):
            held.madvise(_POPULATE_WRITE)


def timed(work: Callable[[], object]) -> float:
    """The seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
