"""Whether a failed training is restarted, and after what pause. Decides without acting."""

from __future__ import annotations

from dataclasses import dataclass

CRASH_LOOP = 3
"""This many failures in a row without a new checkpoint are a crash loop: restarting makes no progress."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between a failure and the restart; doubled with every failure in a row without a new checkpoint."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows a failure: a restart after a pause in seconds, or the end if the pause is None. `reason` is a log line."""

    pause: float | None
    reason: str


class RestartPolicy:
    """Counts the failures of one job. Preemptions don't count."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failures = 0
        self._fruitless = 0

    def after(self, code: int, *, before: int, reached: int) -> Decision:
        """Decide on a training that exited with `code`. `before` and `reached`: its newest complete step at the start and now."""
        self._failures += 1
        self._fruitless = self._fruitless + 1 if reached <= before else 0
        failure = f"the training failed with {code}"
        if self._fruitless >= CRASH_LOOP:
            loop = f"{self._fruitless} times in a row without a checkpoint above step {before}: a crash loop, not restarting"
            return Decision(None, f"{failure}, {loop}")
        if self._failures > self._limit:
            spent = f", and its {self._limit} restarts are spent" if self._limit else ""
            return Decision(None, f"{failure} after step {reached}{spent}")
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** max(0, self._fruitless - 1))
        return Decision(pause, f"{failure}: restart {self._failures} of {self._limit} from step {reached} in {pause:.0f} s")
