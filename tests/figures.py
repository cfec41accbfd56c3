"""Figures that tests gather, the table at the end of the run, and a failed run where a figure is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest


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
        self.rows.append(row)

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
        """Print it at the end of a run, if anything was counted."""
        if not self.rows:
            return
        reporter.section(self.title)
        for line in self.lines():
            reporter.line(line)
        for each in self.wrong():
            reporter.line(f"WRONG: {each}", red=True)

    def judge(self, session: pytest.Session) -> None:
        """Fail the run when a figure is wrong, whatever the tests said."""
        if self.wrong():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
