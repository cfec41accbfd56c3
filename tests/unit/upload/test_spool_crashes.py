"""Kill -9 at every file event of every change of the spool, and then a plain start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
THINGS = ["pin_the_next", "commit", "supersede", "park", "park_and_unpark", "discard"]


@pytest.mark.parametrize("thing", THINGS)
def test_whenever_it_is_killed_a_start_finds_every_snapshot_in_one_place(quick_path: Path, thing: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.upload.spool_crashes", str(quick_path), thing],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert len(outcomes) > 3
    assert not outcomes[-1]["killed"]
    for outcome in outcomes:
        places = [*outcome["pending"], *outcome["parked"], *outcome["durable"]]
        assert set(places) | set(outcome["let_go"]) == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
        assert len(places) == len(set(places))
        assert outcome["pending"] == sorted(outcome["pending"])
        assert outcome["whole"]
        assert outcome["left"] == []
