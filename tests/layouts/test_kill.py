"""kill -9 at every moment of a real save, and of a second save of the same step."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ckptsync.layouts import inspect, list_files

STATE = ("model.safetensors", "optimizer.pt")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, quiet_environment: dict[str, str]) -> Path:
    """The folder that `dying.py` left."""
    root = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("dying.py")
    subprocess.run(
        [sys.executable, str(script), str(root)],
        env=quiet_environment,
        capture_output=True,
        timeout=150,
        check=True,
    )
    return root


def test_no_save_that_was_killed_half_way_counts_as_complete(killed: Path, table: dict[str, Counter[str]]) -> None:
    names = {file.path for file in list_files(killed / "whole" / "checkpoint-2")}
    points = sorted(killed.glob("first-*/checkpoint-2"))
    counts = table.setdefault("killed first save", Counter())

    for point in points:
        verdict = inspect(point)
        finished = {file.path for file in verdict.files} == names and not verdict.problems
        counts.update({"killed": not verdict.complete, "of killed": not finished})

        assert verdict.complete is finished
        assert all(problem.transient for problem in verdict.problems)

    assert len(points) > 15


def test_a_second_save_that_was_killed_counts_as_complete_only_when_all_state_is_of_one_save(
    killed: Path, table: dict[str, Counter[str]]
) -> None:
    old, new = state(killed / "whole" / "checkpoint-2"), state(killed / "again" / "checkpoint-2")
    points = sorted(killed.glob("second-*/checkpoint-2"))
    counts = table.setdefault("killed second save", Counter())

    for point in points:
        mixed = state(point) not in (old, new)
        complete = inspect(point).complete
        counts.update({"killed": mixed and not complete, "of killed": mixed})

        assert not (mixed and complete), point

    assert old != new
    assert counts["of killed"] > 10


def state(path: Path) -> list[bytes]:
    """The bytes that the two saves differ in; the generators have moved on in every child."""
    return [(path / name).read_bytes() for name in STATE]
