"""Where the state of an output folder is kept, before and after its first checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptsync import record, state_folder
from ckptsync.upload.spool import Spool
from tests.checkpoints import make_checkpoint


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_an_empty_output_folder_stays_empty_and_gets_its_state_with_the_first_checkpoint(output_dir: Path) -> None:
    spool = Spool(output_dir, run_id="r1")
    spool.make()
    record.update(output_dir, run_id="r1")
    assert list(output_dir.iterdir()) == []
    assert not spool.move_in()
    assert Spool(output_dir).root == output_dir.parent / ".out.ckptsync"

    make_checkpoint(output_dir, 4)

    assert record.read(output_dir).text("run_id") == "r1"
    assert spool.move_in()
    assert not spool.move_in()
    assert record.read(output_dir).text("run_id") == "r1"
    assert spool.root == output_dir / ".ckptsync"
    assert list(output_dir.parent.iterdir()) == [output_dir]


def test_a_link_and_the_folder_that_it_names_have_one_state(output_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(output_dir)
    Spool(tmp_path / "link").make()

    assert state_folder.of(output_dir) == state_folder.of(tmp_path / "link") == tmp_path / ".out.ckptsync"


def test_a_state_that_is_there_stays_and_one_beside_a_full_folder_moves_in_at_the_next_start(
    output_dir: Path,
) -> None:
    (output_dir / ".ckptsync").mkdir()
    Spool(output_dir).make()
    assert state_folder.of(output_dir) == output_dir / ".ckptsync"

    (output_dir / ".ckptsync").rename(output_dir.parent / ".out.ckptsync")
    make_checkpoint(output_dir, 4)
    Spool(output_dir).make()
    assert state_folder.of(output_dir) == output_dir / ".ckptsync"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_beside_it_is_no_state(output_dir: Path) -> None:
    planted = output_dir.parent / ".out.ckptsync"
    planted.mkdir()
    os.chown(planted, 12345, 12345)

    Spool(output_dir).make()

    assert state_folder.of(output_dir) == output_dir / ".ckptsync"


def test_a_link_beside_it_is_no_state(output_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.ckptsync").symlink_to(tmp_path / "elsewhere")

    Spool(output_dir).make()

    assert state_folder.of(output_dir) == output_dir / ".ckptsync"
