"""run.json: kept keys, permissions, values of the wrong kind."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from ckptsync import record


def test_an_update_keeps_unknown_keys_drops_those_given_as_none_and_is_for_the_owner_alone(tmp_path: Path) -> None:
    record.update(tmp_path, run_id="a", command=["python", "train.py"])
    path = record.path_of(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_a_later_version": [1]}))

    record.update(tmp_path, entity="me", command=None)

    assert json.loads(path.read_text()) == {"version": 1, "run_id": "a", "of_a_later_version": [1], "entity": "me"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_update_that_changes_nothing_does_not_write(tmp_path: Path) -> None:
    record.update(tmp_path, run_id="a")
    before = record.path_of(tmp_path).stat()

    record.update(tmp_path, run_id="a")

    assert record.path_of(tmp_path).stat().st_ino == before.st_ino


def test_values_of_the_wrong_type_count_as_missing() -> None:
    known = record.Record({"run_id": 5, "command": ["python", 1], "world_size": -1, "resumed_step": "9", "resumed_at": None})

    assert (known.text("run_id"), known.command, known.world_size) == (None, None, None)
    assert (known.resumed_step, known.resumed_at) == (None, 0.0)


def test_the_record_of_a_folder_that_has_none_is_empty(tmp_path: Path) -> None:
    assert record.read(tmp_path).values == {}
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_is_numbered_above_everything_that_is_known_here_and_elsewhere(tmp_path: Path) -> None:
    assert record.begin_attempt(tmp_path).number == 1
    record.note_highest_attempt(tmp_path, 7)
    record.note_highest_attempt(tmp_path, 3)

    attempt = record.begin_attempt(tmp_path, resumed_step=10)

    assert (attempt.number, attempt.resumed_step) == (8, 10)
    assert record.read(tmp_path).attempt == attempt


def test_what_follows_train_stays_undone_through_attempts_that_end_before_train(tmp_path: Path) -> None:
    first = record.begin_attempt(tmp_path)
    record.update(tmp_path, training={"pid": 1}, reached_end={"attempt": first.number, "step": 8})

    record.begin_attempt(tmp_path, resumed_step=8)
    undone = record.read(tmp_path).left_undone
    record.note_completed(tmp_path, "a store")

    assert undone
    assert not record.read(tmp_path).left_undone


def test_a_record_that_the_file_system_cannot_read_is_not_replaced(tmp_path: Path) -> None:
    record.update(tmp_path, run_id="r1")
    path = record.path_of(tmp_path)
    aside = path.rename(tmp_path / "aside")
    # Reading it is an error of the file system (ELOOP), as EIO would be.
    path.symlink_to(path.name)

    with pytest.raises(OSError, match=r"run\.json"):
        record.begin_attempt(tmp_path)
    path.unlink()
    aside.rename(path)

    assert record.read(tmp_path).text("run_id") == "r1"
