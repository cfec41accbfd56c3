"""Whether a training that failed is started again, and after what pause. Decides only."""

from __future__ import annotations

from dataclasses import dataclass

CRASH_LOOP = 3
"""So many failures in a row without a new checkpoint are a crash loop: starting again is no progress."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between a failure and the next start; doubled with every failure in a row that brought no checkpoint."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What comes after a failure: a pause in seconds and another start, or, with None, the end. `reason` is a sentence."""

    pause: float | None
    reason: str


class RestartPolicy:
    """Counts the failures of one job. Preemptions are not told to it: they cost nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failures = 0
        self._fruitless = 0

    def after(self, code: int, *, before: int, reached: int) -> Decision:
        """Decide after an end with `code` of a training whose newest whole checkpoint was step `before` and is step `reached`."""
        self._failures += 1
        self._fruitless = self._fruitless + 1 if reached <= before else 0
        what = f"the training failed with {code}"
        if self._fruitless >= CRASH_LOOP:
            loop = f"{self._fruitless} times in a row without a checkpoint above step {before}: a crash loop, not started again"
            return Decision(None, f"{what}, {loop}")
        if self._failures > self._limit:
            spent = f", and its {self._limit} restarts are spent" if self._limit else ""
            return Decision(None, f"{what} after step {reached}{spent}")
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** max(0, self._fruitless - 1))
        return Decision(pause, f"{what}: restart {self._failures} of {self._limit} from step {reached} in {pause:.0f} s")
