"""Interleaved rounds: A B A B, so that whatever else the machine does meets every contender alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

Contender = Callable[[], float]
"""One measurement, in whatever unit; most give seconds."""


def interleaved(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[float]]:
    """So many rounds of every contender in turn, with what the one before wrote out of the way of the next."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            os.sync()
            found[name].append(measure())
    return found


def timed(work: Callable[[], object]) -> float:
    """The seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
