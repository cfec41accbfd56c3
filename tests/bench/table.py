"""Prints the rows as a table, and marks those that miss their target."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.bench.row import Row


def show(rows: Sequence[Row]) -> None:
    """Print the table on stderr: stdout may carry the JSON."""
    table = Table(title="ckptsync, measured")
    for heading in ("what", "against", "ours", "theirs", "value", "spread", "at most", ""):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*cells(row), verdict(row))
    Console(file=sys.stderr, width=None if sys.stderr.isatty() else 160).print(table)


def markdown(rows: Sequence[Row], runs: Sequence[Sequence[float]]) -> str:
    """Several runs as the README's table. The median of the runs is compared with the target."""
    lines = ["| what | against | ours | theirs | each run | all rounds | at most |", "|---|---|---|---|---|---|---|"]
    for row, each in zip(rows, runs, strict=True):
        what, _, ours, theirs, _, spread, target = cells(row)
        found = ", ".join(f"{run:.3g}" for run in each)
        short = "" if row.ok else " (short)"
        lines.append(f"| {what} | {row.against} | {ours} | {theirs} | {found} | {spread} | {target}{short} |")
    return "\n".join(lines) + "\n"


def verdict(row: Row) -> str:
    """One word; empty if there is no target."""
    return "" if row.target is None else "[green]ok[/]" if row.ok else "[bold red]SHORT[/]"


def cells(row: Row) -> list[str]:
    """One row's cells, without the verdict."""
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
