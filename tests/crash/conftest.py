"""The table of kill points, printed when a run of these tests ends."""

from __future__ import annotations

import pytest

from tests.figures import Table

HEADINGS = (
    "where it died",
    "events",
    "kill points tried",
    "snapshots lost",
    "torn versions",
    "duplicate versions",
    "left behind",
)
TABLE = Table("died at every file event, then started plainly", HEADINGS, zero=HEADINGS[3:])


@pytest.fixture
def table() -> Table:
    """Where a sweep writes its figures."""
    return TABLE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    TABLE.show(terminalreporter)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run on a wrong figure."""
    TABLE.judge(session)
