"""How things stand, on one line: what is durable, how far behind that is, how fast it goes. Decides only, does no I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StatusLine:
    """`durable` and `newest` are steps, None where there is none; `waiting` counts snapshots; `rate` is in bytes per second."""

    durable: int | None = None
    newest: int | None = None
    waiting: int = 0
    uploading: str | None = None
    percent: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        parts = [f"step {self.durable} durable" if self.durable is not None else "nothing durable yet"]
        if not self.waiting:
            parts.append("queue empty")
        elif self.newest is not None and self.durable is not None:
            parts.append(f"behind by {max(0, self.newest - self.durable)} steps, {self.waiting} queued")
        else:
            parts.append(f"{self.waiting} queued up to step {self.newest}")
        if self.uploading:
            parts.append(f"uploading {self.uploading}" + (f" {self.percent} %" if self.percent is not None else ""))
        if self.rate:
            parts.append(f"{self.rate / 1e6:.1f} MB/s")
        return "; ".join(parts)
