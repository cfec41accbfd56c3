"""The time after a preemption notice: until when uploads have to be done, and whether one should give way to a newer one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

LEAST_STALL = 20.0
"""Seconds without progress that every upload is allowed, as long as a store may take to commit a version."""

STALL_SHARE = 3
"""An upload may stand still for one part in so many of the time that is left, so that there is time for another try."""

NOTICE_FLUSH = 120.0
"""Seconds without progress after which a notice that names no deadline ends the retries of an unreachable store."""

LATE = 1.5
"""An upload that takes longer than LATE times its usual time may take any time."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """`queued` names what was pinned before the notice, `end` is when the machine goes (monotonic; None: unknown)."""

    queued: frozenset[str]
    end: float | None

    @classmethod
    def after(cls, seconds: float | None, queued: Collection[str], clock: Callable[[], float] = time.monotonic) -> Deadline:
        """The deadline of a notice that leaves so many seconds, None where it doesn't say."""
        return cls(frozenset(queued), None if seconds is None else clock() + seconds)

    def stall(self, now: float) -> float:
        """Seconds without progress that an upload is allowed."""
        left = NOTICE_FLUSH if self.end is None else self.end - now
        return max(LEAST_STALL, left / STALL_SHARE)

    def calls_off(self, *, current: float, elapsed: float, newest: float, now: float) -> bool:
        """Whether the current upload has to give way: the newest fits before the deadline, but not behind the current one.

        `current` and `newest` are the seconds that these uploads usually take, `elapsed` those that the current one has taken.
        """
        if self.end is None:
            return False
        left = self.end - now
        return newest <= left < newest + rest_of_upload(current, elapsed)


def rest_of_upload(usual: float, elapsed: float) -> float:
    """The seconds that an upload which usually takes `usual` may still need; infinite when it is long overdue."""
    return max(0.0, usual - elapsed) if elapsed <= LATE * usual else math.inf
