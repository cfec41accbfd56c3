"""Keeps a training that silently started over from taking the place of the one that it should have resumed. Decides only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ckptsync.checkpoint import Receipt, Snapshot
from ckptsync.record import Record


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the training had come: the step, when that was (seconds since the epoch), and whether a resume set it."""

    step: int
    at: float
    resumed: bool


def progress(record: Record, known: Sequence[Receipt | Snapshot]) -> Progress | None:
    """Where the training has to go on from: its last resume, or what became durable or waits since; None for a first start."""
    newest = max(known, key=lambda each: (each.sequence, _committed_at(each)), default=None)
    if record.resumed_step is not None and (newest is None or newest.saved_at <= record.resumed_at):
        return Progress(record.resumed_step, record.resumed_at, resumed=True)
    return Progress(newest.step, newest.saved_at, resumed=False) if newest else None


def _committed_at(each: Receipt | Snapshot) -> float:
    return each.committed_at if isinstance(each, Receipt) else math.inf


def started_over(step: int, saved_at: float, before: Progress | None) -> bool:
    """Whether a checkpoint can only come from a training that began again.

    After a resume from step N the first checkpoint lies above N. Without one, the same step may be saved again (a just-in-time
    save right after a regular one), but none below.
    """
    if before is None or saved_at <= before.at:
        return False
    return step <= before.step if before.resumed else step < before.step


def left_behind(step: int, saved_at: float, before: Progress | None) -> bool:
    """Whether a folder is older than what is durable or waits already: to upload it would turn `latest` back."""
    return before is not None and saved_at <= before.at and step < before.step
