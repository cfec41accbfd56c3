"""Tables and times for people: bold headings on a terminal, plain columns elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from ckptsync.cli.visible import visible


def show(headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), title: str = "") -> None:
    """Print a table. The columns in `right` are right-aligned; the last column is never truncated."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", no_wrap=heading != headings[-1])
    for row in rows:
        table.add_row(*map(visible, row))
    console = Console(soft_wrap=True, highlight=False)
    if title:
        console.print(title, style="bold", markup=False)
    console.print(table)


def ago(moment: float, now: float | None = None) -> str:
    """The time since then, in a readable unit: 40 s, 12 min, 5.2 h, 3.1 d."""
    return age((time.time() if now is None else now) - moment)


def age(seconds: float | None) -> str:
    """A duration in a readable unit."""
    seconds = max(0.0, seconds or 0.0)
    for unit, length, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}" if length < 3600 else f"{seconds / length:.1f} {unit}"
    return f"{seconds / 86400:.1f} d"
