"""A preemption notice, and what every provider of notices must do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Notice:
    """This machine will be preempted, in `seconds` where the provider says so. Not `final`: it may be, and nobody knows when."""

    source: str
    seconds: float | None = None
    final: bool = True

    def __str__(self) -> str:
        left = "" if self.seconds is None else f", {self.seconds:.0f} s left"
        return f"{self.source}{left}"


class Source(Protocol):
    """One provider's notices. Every method may raise OSError or ValueError, and is called again later."""

    name: str
    interval: float
    """Seconds between two polls."""

    def present(self) -> bool:
        """Whether this machine has the provider's metadata service."""
        ...

    def poll(self) -> Notice | None:
        """Ask once. Returns only when the service answers, which may hold the answer back until there is one."""
        ...
