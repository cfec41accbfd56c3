"""kill -9 at random moments of a watcher, its upload process, the server and the training; faults in the line between."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash.conftest import TABLE
from tests.soak.soak import Soak


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_whatever_is_killed_and_whenever_nothing_is_lost_torn_or_there_twice(tmp_path: Path) -> None:
    seed = random.randrange(2**31)
    print(f"seed {seed}")

    found = Soak(tmp_path, seed).run(60)

    kills = sum(value for name, value in found.figures.items() if name.startswith("kills") and isinstance(value, int))
    saved = found.figures["checkpoints saved"]
    name = f"kill -9 at random, {saved} saves, seed {seed}"
    TABLE.add(name, "", kills, len(found.lost), len(found.torn), len(found.duplicate), len(found.left))
    assert not found.wrong
