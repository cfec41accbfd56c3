"""The table of kill points, printed when a run of these tests ends, and a server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.evidence import Damage
from tests.figures import Table
from tests.server_process import ServerProcess

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


@dataclass
class Sweep:
    """What one sweep has found so far."""

    name: str
    events: int
    points: int = 0
    lost: int = 0
    torn: int = 0
    duplicate: int = 0
    left: int = 0

    def add(self, damage: Damage, left: int) -> None:
        """One more kill point."""
        self.points += 1
        self.lost += len(damage.lost)
        self.torn += len(damage.torn)
        self.duplicate += len(damage.duplicate)
        self.left += left

    def tell(self) -> None:
        """Write the row, and fail the test when a figure is wrong."""
        TABLE.add(self.name, self.events, self.points, self.lost, self.torn, self.duplicate, self.left)
        assert (self.lost, self.torn, self.duplicate, self.left) == (0, 0, 0, 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for a module."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as started:
        yield started
