"""Two minutes of the soak. `python -m tests.soak --minutes 60` is the real one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.figures import Table
from tests.soak.jobs import JobSoak
from tests.soak.soak import Soak

BROKEN = ("lost", "torn", "twice", "wrong latest", "exit 0 with something not durable", "left behind", "other broken promises")
TABLE = Table("two minutes of soak", ("seed", "saved", "versions", *BROKEN), zero=BROKEN)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", [Soak, JobSoak])
def test_nothing_is_lost_torn_or_twice_whatever_fails(tmp_path: Path, kind: type[Soak]) -> None:
    seed = random.randrange(2**31)

    found = kind(tmp_path, seed).run(120)

    figures = found.figures
    TABLE.add(str(seed), figures["checkpoints saved"], figures["versions"], *(figures[name] for name in BROKEN))
    assert not found.wrong, f"seed {seed}: {found.wrong}"
