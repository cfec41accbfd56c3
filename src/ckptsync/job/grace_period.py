"""The grace period, from a preemption notice to the end of the machine, and whether an upload fits into it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

PROMISED = {"gce": 30.0, "aws": 120.0, "azure": 30.0}
"""Seconds from the notice to the end, by provider."""

KUBERNETES = 30.0
"""The default terminationGracePeriodSeconds of a pod. A pod can't read its own."""


def usual(providers: Sequence[str], environ: Mapping[str, str] = os.environ) -> float | None:
    """The shortest usual grace period of this machine, in seconds; None if none is known."""
    known = [PROMISED[name] for name in providers]
    known += [KUBERNETES] if "KUBERNETES_SERVICE_HOST" in environ else []
    return min(known, default=None)


class GraceCheck:
    """Whether an upload fits into the grace period. Does no I/O, and remembers what it warned of."""

    GROWTH = 1.5
    """The factor by which an upload's time must grow before the warning is repeated."""

    def __init__(self) -> None:
        self._warned: float | None = None

    def warn(self, pace: tuple[int, float] | None, grace: float | None) -> None:
        """Log the warning for the bytes and seconds of an upload, if there is one. Nothing where they are not known."""
        if pace and (warning := self.warning(size=pace[0], seconds=pace[1], grace=grace)):
            log.warning("%s", warning)

    def warning(self, *, size: int, seconds: float, grace: float | None) -> str | None:
        """The warning if an upload of `size` bytes that took `seconds` is longer than the grace period; else None.

        Given once, and again when the time has grown by GROWTH, or had fitted in between.
        """
        if grace is None or seconds <= 0:
            return None
        if seconds <= grace:
            self._warned = None
            return None
        if self._warned is not None and seconds < self._warned * self.GROWTH:
            return None
        self._warned = seconds
        return (
            f"an upload takes {seconds:.0f} s ({size / 1e9:.2g} GB at {size / seconds / 1e6:.3g} MB/s), but the grace period is"
            f" {grace:.0f} s: a checkpoint saved at the notice would not be durable in time, and the work since the last upload"
            f" would be lost. Save more often, save less (PEFT, fewer optimizer states), or, if you can set the grace period,"
            f" raise it to {seconds * 1.3:.0f} s and pass that as --grace"
        )
