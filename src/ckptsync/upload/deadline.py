"""The time after a preemption notice: until when uploads have to be done, and whether one should give way to a newer one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

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
