"""Figures that tests gather, the tables at the end of the run, and a failed run where a figure is wrong.

The tests may run in several processes: each row goes to a file at once, and the process that reports reads them all.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SHARED = "CKPTSYNC_TEST_FIGURES"
"""Environment: the file that the rows of this run go to."""


def begin() -> None:
    """Make the file, once a run; the processes that it starts inherit its name."""
    if SHARED not in os.environ:
        descriptor, name = tempfile.mkstemp(prefix="ckptsync-figures-")
        os.close(descriptor)
        os.environ[SHARED] = name


def gathered() -> list[Table]:
    """The tables that the tests of this run have added to, in the order of their first rows."""
    tables: dict[str, Table] = {}
    for line in Path(os.environ[SHARED]).read_text("utf-8").splitlines():
        value = json.loads(line)
        table = tables.setdefault(
            json.dumps([value["title"], value["headings"]]), Table(value["title"], value["headings"], value["zero"])
        )
        table.rows.append(value["row"])
    return list(tables.values())


def end() -> None:
    """Remove the file."""
    Path(os.environ.pop(SHARED)).unlink(missing_ok=True)


@dataclass
class Table:
    """Rows under headings. `zero` are the headings whose every figure has to be 0."""

    title: str
    headings: Sequence[str]
    zero: Sequence[str]
    rows: list[Sequence[object]] = field(default_factory=list)

    def add(self, *row: object) -> None:
        """One more row, as wide as the headings."""
        assert len(row) == len(self.headings)
        line = json.dumps({"title": self.title, "headings": list(self.headings), "zero": list(self.zero), "row": row})
        with Path(os.environ[SHARED]).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def wrong(self) -> list[str]:
        """The figures that should be 0 and are not."""
        columns = [self.headings.index(name) for name in self.zero]
        return [f"{row[0]}: {self.headings[each]} {row[each]}" for row in self.rows for each in columns if row[each] != 0]

    def lines(self) -> list[str]:
        """The table as text, columns aligned."""
        cells = [[str(cell) for cell in row] for row in (self.headings, *self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.headings))]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]

    def show(self, reporter: pytest.TerminalReporter) -> None:
        """Print it at the end of a run."""
        reporter.section(self.title)
        for line in self.lines():
            reporter.line(line)
        for each in self.wrong():
            reporter.line(f"WRONG: {each}", red=True)
