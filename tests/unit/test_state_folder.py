"""Where the state of an output folder is kept while a training starts with an empty one."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest

from ckptsync import locks, processes, record, state_folder, state_moves
from ckptsync.trainer import marker
from ckptsync.upload.spool import Spool
from tests.checkpoints import make_checkpoint


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    """An output folder that holds the state alone."""
    folder = tmp_path / "out"
    folder.mkdir()
    record.update(folder, run_id="r1")
    return folder


def test_the_state_leaves_an_empty_output_folder_and_comes_back_with_the_first_checkpoint(output_dir: Path) -> None:
    spool = Spool(output_dir, run_id="r1")
    spool.move_out()
    record.update(output_dir, project="p")
    spool.move_in()
    assert list(output_dir.iterdir()) == []
    assert spool.root == output_dir.parent / ".out.ckptsync"

    make_checkpoint(output_dir, 4)
    assert record.read(output_dir).text("run_id") == "r1"
    spool.move_in()

    assert record.read(output_dir).text("project") == "p"
    assert spool.root == output_dir / ".ckptsync"
    assert list(output_dir.parent.iterdir()) == [output_dir]


def test_after_a_training_that_saved_nothing_the_state_comes_back_too(output_dir: Path) -> None:
    spool = Spool(output_dir)
    spool.move_out()

    spool.move_in(though_empty=True)

    assert list(output_dir.iterdir()) == [output_dir / ".ckptsync"]


def test_a_link_and_the_folder_that_it_names_have_one_state(output_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(output_dir)
    Spool(tmp_path / "link").move_out()

    assert state_folder.of(output_dir) == state_folder.of(tmp_path / "link") == tmp_path / ".out.ckptsync"


def test_the_state_stays_in_a_folder_with_something_else_in_it(output_dir: Path) -> None:
    (output_dir / "notes.txt").touch()

    assert not state_folder.move_out(output_dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_beside_it_is_no_state(output_dir: Path) -> None:
    planted = output_dir.parent / ".out.ckptsync"
    planted.mkdir()
    os.chown(planted, 12345, 12345)

    Spool(output_dir).move_out()

    assert state_folder.of(output_dir) == output_dir / ".ckptsync"


def test_a_link_beside_it_is_no_state(output_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.ckptsync").symlink_to(tmp_path / "elsewhere")

    Spool(output_dir).move_out()

    assert state_folder.of(output_dir) == output_dir / ".ckptsync"


def test_an_output_folder_that_is_deleted_and_made_again_keeps_its_state_and_nothing_makes_it_meanwhile(output_dir: Path) -> None:
    state_moves.move_out(output_dir)
    output_dir.rmdir()

    record.update(output_dir, project="p")

    assert not output_dir.exists()
    output_dir.mkdir()
    assert record.read(output_dir).text("project") == "p"
    assert list(output_dir.iterdir()) == []


def test_without_an_output_folder_no_state_is_made(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "out", run_id="r1")

    for make in (spool.make, spool.prepare, lambda: record.update(spool.output_dir, run_id="r1")):
        with pytest.raises(FileNotFoundError):
            make()

    assert list(tmp_path.iterdir()) == []


def test_a_state_that_a_killed_job_left_of_another_folder_of_that_name_is_dropped(output_dir: Path) -> None:
    state_moves.move_out(output_dir)
    output_dir.rmdir()
    output_dir.mkdir()

    assert state_moves.drop_stray(output_dir) is None

    assert record.read(output_dir).text("run_id") is None
    assert list(output_dir.parent.iterdir()) == [output_dir]


def test_where_it_holds_receipts_it_is_set_aside(output_dir: Path) -> None:
    Spool(output_dir).prepare()
    (output_dir / ".ckptsync/receipts/checkpoint-4.x.json").touch()
    state_moves.move_out(output_dir)
    output_dir.rmdir()
    output_dir.mkdir()

    aside = state_moves.drop_stray(output_dir)

    assert aside is not None
    assert (aside / "receipts/checkpoint-4.x.json").exists()
    assert record.read(output_dir).text("run_id") is None


def test_the_state_stays_that_of_the_folder_that_it_was_moved_out_of(output_dir: Path) -> None:
    state_moves.move_out(output_dir)

    state_moves.drop_stray(output_dir)

    assert record.read(output_dir).text("run_id") == "r1"


def test_and_that_of_a_folder_made_again_while_its_job_or_its_training_lives(output_dir: Path) -> None:
    state_moves.move_out(output_dir)
    output_dir.rmdir()
    output_dir.mkdir()
    lock = locks.FolderLock(state_folder.of(output_dir) / "job")
    lock.acquire("a job")
    state_moves.drop_stray(output_dir)
    lock.release()
    with record.noting_training(output_dir) as note:
        note(os.getpid())
    state_moves.drop_stray(output_dir)

    assert record.read(output_dir).text("run_id") == "r1"


def test_the_end_of_a_job_leaves_no_state_beside_an_output_folder_that_is_gone(output_dir: Path) -> None:
    state_moves.move_out(output_dir)
    output_dir.rmdir()

    state_moves.leave_none_beside(output_dir)

    assert list(output_dir.parent.iterdir()) == []


def test_a_training_is_noted_without_a_new_name_in_its_folder(output_dir: Path) -> None:
    with record.noting_training(output_dir) as note:
        names = set((output_dir / ".ckptsync").iterdir())
        note(os.getpid())

        assert set((output_dir / ".ckptsync").iterdir()) == names
    assert processes.living(record.read(output_dir).values["training"]) == os.getpid()


def test_with_the_first_save_the_training_moves_the_state_in_itself(output_dir: Path) -> None:
    state_moves.move_out(output_dir)
    make_checkpoint(output_dir, 4)

    marker.write(output_dir, 4, world_size=1)

    assert (output_dir / ".ckptsync/complete/checkpoint-4").exists()
    assert list(output_dir.parent.iterdir()) == [output_dir]


def test_a_marker_that_is_written_while_the_state_moves_in_is_kept_and_nothing_stays_beside(tmp_path: Path) -> None:
    for number in range(150):
        out = tmp_path / str(number)
        out.mkdir()
        record.update(out, run_id="r")
        assert state_moves.move_out(out)
        watcher = threading.Thread(target=move_in_when_it_can, args=(out,))
        watcher.start()
        (out / "checkpoint-4").mkdir()
        # At another moment of the move each time.
        time.sleep(number * 1e-5)

        marker.write(out, 4, world_size=1)

        watcher.join()
        assert (out / ".ckptsync" / "complete" / "checkpoint-4").exists()
        assert not (tmp_path / f".{number}.ckptsync").exists()


def move_in_when_it_can(out: Path) -> None:
    while not (out / ".ckptsync").exists():
        with contextlib.suppress(OSError):
            state_moves.move_in(out)
