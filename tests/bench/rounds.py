"""Interleaved rounds: A B A B, so that other load on the machine affects every contender alike."""

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
    """Run every contender in turn for `rounds` rounds, and flush what each wrote before the next starts.

    `memory` is how many bytes of files each contender writes to memory; that much is touched briefly beforehand.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            os.sync()
            _warm(memory)
            found[name].append(measure())
    return found


def _warm(memory: int) -> None:
    """A virtual machine's host reclaims free memory, and touching 2 GB of it again takes from 1 to 6 s (measured)."""
    if memory:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        # Kernels before 5.14 don't support this: the memory stays unpopulated.
        with mmap.mmap(-1, min(memory, free // 2)) as held, contextlib.suppress(OSError):
            held.madvise(_POPULATE_WRITE)


def timed(work: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
