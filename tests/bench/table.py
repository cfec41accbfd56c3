"""The rows as a table in the terminal, those that fall short marked."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.bench.row import Row


def show(rows: Sequence[Row]) -> None:
    """Print it on stderr: stdout may carry the JSON."""
    table = Table(title="ckptsync, measured")
    for heading in ("what", "against", "ours", "theirs", "value", "spread", "at most", ""):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*cells(row), verdict(row))
    Console(file=sys.stderr, width=None if sys.stderr.isatty() else 160).print(table)


def markdown(rows: Sequence[Row]) -> str:
    """The same as a table of the README."""
    lines = ["| what | against | ours | theirs | value | spread | at most |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        *shown, target = cells(row)
        lines.append("| " + " | ".join([*shown, target if row.ok else f"{target}: **short**"]) + " |")
    return "\n".join(lines) + "\n"


def verdict(row: Row) -> str:
    """In one word; nothing where nothing is asked."""
    return "" if row.target is None else "[green]ok[/]" if row.ok else "[bold red]SHORT[/]"


def cells(row: Row) -> list[str]:
    """One row's texts, without the verdict."""
    theirs = "" if row.theirs is None else f"{row.theirs:.3g} {row.unit}"
    value = f"{row.value:.3g}" if row.against else f"{row.value:.3g} {row.unit}"
    against = row.against or "itself"
    spread = f"{row.low:.3g} to {row.high:.3g}"
    target = "" if row.target is None else f"{row.target:g}"
    return [
        f"{row.noun}: {row.what}",
        against,
        f"{row.ours:.3g} {row.unit}",
        theirs,
        value,
        spread,
        target,
    ]
