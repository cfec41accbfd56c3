"""When a checkpoint folder has come to rest, with a clock that the test turns."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from ckptsync import layouts
from ckptsync.checkpoint import fingerprint
from ckptsync.trainer import marker
from ckptsync.upload.quiet_period import QuietFolder, QuietPeriod
from tests.checkpoints import make_checkpoint

QUIET = 3.0


class Clock:
    """A monotonic clock that stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quiet_period(tmp_path: Path, clock: Clock) -> QuietPeriod:
    return QuietPeriod(tmp_path, tmp_path / ".ckptsync" / "complete", quiet=QUIET, clock=clock)


def rested(quiet_period: QuietPeriod, clock: Clock) -> list[QuietFolder]:
    """One look, the quiet period, and another look."""
    quiet_period.scan()
    clock.now += QUIET
    return quiet_period.scan()


def steps(found: list[QuietFolder]) -> list[int]:
    return [each.step for each in found]


def test_a_folder_rests_after_the_quiet_period_and_not_before(quiet_period: QuietPeriod, clock: Clock, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5)

    assert quiet_period.scan() == []
    clock.now += QUIET - 0.01
    assert quiet_period.scan() == []
    assert quiet_period.unsettled
    clock.now += 0.01
    found = quiet_period.scan()

    assert steps(found) == [5]
    assert found[0].fingerprint == fingerprint(layouts.list_files(tmp_path / "checkpoint-5"))


def test_every_change_starts_the_quiet_period_again(quiet_period: QuietPeriod, clock: Clock, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 5)
    quiet_period.scan()
    for number in range(5):
        clock.now += QUIET - 0.5
        with (folder / "optimizer.pt").open("ab") as file:
            file.write(bytes(number + 1))

        assert quiet_period.scan() == []

    clock.now += QUIET
    assert steps(quiet_period.scan()) == [5]


def test_the_word_of_the_training_makes_the_rest_unnecessary(quiet_period: QuietPeriod, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5)
    marker.write(tmp_path, 5, world_size=1)

    assert steps(quiet_period.scan()) == [5]


@pytest.mark.parametrize("content", ["", "{}", "[]", json.dumps({"print": 5}), json.dumps({"print": "0" * 12})])
def test_a_marker_that_does_not_name_these_very_files_changes_nothing(
    quiet_period: QuietPeriod, clock: Clock, tmp_path: Path, content: str
) -> None:
    make_checkpoint(tmp_path, 5)
    (tmp_path / ".ckptsync" / "complete").mkdir(parents=True)
    (tmp_path / ".ckptsync" / "complete" / "checkpoint-5").write_text(content)

    assert quiet_period.scan() == []
    clock.now += QUIET
    assert steps(quiet_period.scan()) == [5]


def test_a_marker_of_the_save_before_is_not_taken_for_one_of_the_save_after(quiet_period: QuietPeriod, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5)
    marker.write(tmp_path, 5, world_size=1)
    make_checkpoint(tmp_path, 5, content="again", saved_at=2_000_000_000)

    assert quiet_period.scan() == []


def test_what_was_accepted_is_left_alone_until_it_is_saved_again(quiet_period: QuietPeriod, clock: Clock, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5)
    quiet_period.accept(rested(quiet_period, clock)[0])

    assert rested(quiet_period, clock) == []
    assert not quiet_period.unsettled
    make_checkpoint(tmp_path, 5, content="again", saved_at=2_000_000_000)
    assert steps(rested(quiet_period, clock)) == [5]


def test_a_file_that_comes_late_to_an_accepted_folder_is_seen(quiet_period: QuietPeriod, clock: Clock, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 5)
    quiet_period.accept(rested(quiet_period, clock)[0])

    (folder / "entropy_ctrl_state.json").write_text("{}")
    os.utime(folder, (2_000_000_000, 2_000_000_000))

    assert steps(rested(quiet_period, clock)) == [5]


def test_what_was_refused_is_looked_at_again_when_a_file_grows_in_place(
    quiet_period: QuietPeriod, clock: Clock, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path, 5)
    quiet_period.refuse(rested(quiet_period, clock)[0])
    assert rested(quiet_period, clock) == []
    before = folder.stat().st_mtime_ns

    with (folder / "optimizer.pt").open("ab") as file:
        file.write(b"more")

    assert folder.stat().st_mtime_ns == before
    assert steps(rested(quiet_period, clock)) == [5]


def test_what_was_postponed_comes_again_after_that_time_or_at_once_when_it_changes(
    quiet_period: QuietPeriod, clock: Clock, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path, 5)
    quiet_period.postpone(rested(quiet_period, clock)[0], 30.0)

    clock.now += 29.9
    assert quiet_period.scan() == []
    clock.now += 0.1
    found = quiet_period.scan()
    assert steps(found) == [5]
    quiet_period.postpone(found[0], 30.0)
    (folder / "late.json").write_text("{}")
    assert steps(rested(quiet_period, clock)) == [5]


def test_a_folder_that_vanishes_is_forgotten_without_a_word(quiet_period: QuietPeriod, clock: Clock, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5)
    quiet_period.scan()

    shutil.rmtree(tmp_path / "checkpoint-5")

    assert rested(quiet_period, clock) == []
    assert not quiet_period.unsettled


def test_a_folder_that_came_back_after_it_vanished_is_new(quiet_period: QuietPeriod, clock: Clock, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5, saved_at=1_000_000_000)
    quiet_period.accept(rested(quiet_period, clock)[0])
    shutil.rmtree(tmp_path / "checkpoint-5")
    quiet_period.scan()

    make_checkpoint(tmp_path, 5, content="again", saved_at=1_000_000_100)

    assert steps(rested(quiet_period, clock)) == [5]


def test_looks_beside_a_rotation_never_fail(quiet_period: QuietPeriod, tmp_path: Path) -> None:
    over = threading.Event()

    def rotate() -> None:
        while not over.is_set():
            make_checkpoint(tmp_path, 5)
            shutil.rmtree(tmp_path / "checkpoint-5", ignore_errors=True)

    trainer = threading.Thread(target=rotate)
    trainer.start()
    try:
        for _ in range(200):
            quiet_period.scan()
    finally:
        over.set()
        trainer.join()


def test_the_output_folder_itself_may_be_missing(tmp_path: Path) -> None:
    quiet_period = QuietPeriod(tmp_path / "missing", tmp_path / "markers", quiet=0.0)

    assert quiet_period.scan() == []


def test_folders_come_in_the_order_of_their_steps_whatever_their_times(
    quiet_period: QuietPeriod, clock: Clock, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path, 10, saved_at=1_000_000_000)
    make_checkpoint(tmp_path, 9, saved_at=1_000_000_200)
    make_checkpoint(tmp_path, 11, saved_at=1_000_000_100)
    make_checkpoint(tmp_path, 12, saved_at=1_000_000_100)

    assert steps(rested(quiet_period, clock)) == [9, 10, 11, 12]


def test_only_folders_that_the_trainer_would_resume_from_count(quiet_period: QuietPeriod, clock: Clock, tmp_path: Path) -> None:
    whole = make_checkpoint(tmp_path / "elsewhere", 1)
    (tmp_path / "checkpoint-1").symlink_to(whole)
    (tmp_path / "checkpoint-2").write_text("a file")
    (tmp_path / "checkpoint-3.partial").mkdir()
    (tmp_path / ".ckptsync" / "spool" / "checkpoint-4").mkdir(parents=True)

    assert rested(quiet_period, clock) == []


def test_the_fingerprint_is_that_of_the_files_at_rest(quiet_period: QuietPeriod, clock: Clock, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 5, saved_at=1_000_000_000)
    found = rested(quiet_period, clock)[0]

    make_checkpoint(tmp_path, 5, content="again")

    assert found.fingerprint != fingerprint(layouts.list_files(folder))
