"""The time between a preemption notice and the end of the machine, and whether an upload fits into it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

PROMISED = {"gce": 30.0, "aws": 120.0, "azure": 30.0}
"""Seconds between the notice and the end, by provider."""

KUBERNETES = 30.0
"""The terminationGracePeriodSeconds of a pod that doesn't say otherwise, which can't be seen from inside."""


def usual(found: Sequence[str], environ: Mapping[str, str] = os.environ) -> float | None:
    """The shortest notice that is usual on this machine, in seconds; None where nothing is known."""
    known = [PROMISED[name] for name in found]
    known += [KUBERNETES] if "KUBERNETES_SERVICE_HOST" in environ else []
    return min(known, default=None)


class Fit:
    """Whether an upload fits into the time between notice and end. Pure but for what it remembers having said."""

    MUCH = 1.5
    """By this factor an upload's time has to grow before it is said again."""

    def __init__(self) -> None:
        self._said: float | None = None

    def tell(self, pace: tuple[int, float] | None, grace: float | None) -> None:
        """Log what `judge` says of the bytes and seconds of an upload; nothing where they are not known."""
        if pace and (warning := self.judge(size=pace[0], seconds=pace[1], grace=grace)):
            log.warning("%s", warning)

    def judge(self, *, size: int, seconds: float, grace: float | None) -> str | None:
        """A warning with the numbers where an upload that took `seconds` for `size` bytes is longer than the notice; else None.

        Said once, and again when the time has grown much or had fitted meanwhile.
        """
        if grace is None or seconds <= 0:
            return None
        if seconds <= grace:
            self._said = None
            return None
        if self._said is not None and seconds < self._said * self.MUCH:
            return None
        self._said = seconds
        return (
            f"an upload takes {seconds:.0f} s ({size / 1e9:.2g} GB at {size / seconds / 1e6:.3g} MB/s), and the notice here is"
            f" {grace:.0f} s: what is saved at the notice will not be durable in time. What counts is the last upload before it:"
            f" save often enough that losing the work since then is bearable; save less (PEFT, fewer optimizer states); or, where"
            f" the time is yours to set, raise it to {seconds * 1.3:.0f} s and say so with --grace"
        )
