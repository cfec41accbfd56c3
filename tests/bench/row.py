"""One line of the table: what was measured, against what, and whether it meets its target."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """A figure with its target, an upper bound. `against` is empty if the figure stands alone and is no ratio.

    `ours` and `theirs` are medians in `unit`; `value` is compared with the target: the median of the rounds' ratios, or `ours`.
    `low` and `high` are the smallest and the largest value of a round.
    """

    noun: str
    what: str
    against: str
    unit: str
    ours: float
    theirs: float | None
    value: float
    low: float
    high: float
    target: float | None
    rounds: int

    @property
    def ok(self) -> bool:
        """Whether the target is met; true if there is none."""
        return self.target is None or self.value <= self.target

    def to_json(self) -> dict[str, Any]:
        """As JSON, with the verdict."""
        return {**asdict(self), "ok": self.ok}


def compared(
    noun: str, what: str, against: str, ours: Sequence[float], theirs: Sequence[float], *, target: float | None, unit: str = "s"
) -> Row:
    """Ours as a ratio to theirs, round by round."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return Row(
        noun,
        what,
        against,
        unit,
        statistics.median(ours),
        statistics.median(theirs),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        target,
        len(ratios),
    )


def judged(noun: str, what: str, values: Sequence[float], *, target: float | None, unit: str) -> Row:
    """A figure that stands alone."""
    middle = statistics.median(values)
    return Row(noun, what, "", unit, middle, None, middle, min(values), max(values), target, len(values))
