"""The fake checkpoints that other tests are built on are complete themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptsync import layouts
from ckptsync.checkpoint import fingerprint
from ckptsync.trainer import marker
from tests.checkpoints import make_checkpoint


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_fake_checkpoint_is_complete_resumable_and_has_its_world_size(tmp_path: Path, world_size: int) -> None:
    folder = make_checkpoint(tmp_path, 5, world_size=world_size)

    verdict = layouts.inspect(folder, world_size=world_size, deep=True)

    assert verdict.problems == ()
    assert (verdict.complete, verdict.resumable, verdict.layout) == (True, True, "plain")
    assert verdict.world_size == world_size


def test_a_fake_checkpoint_without_its_optimizer_is_incomplete(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 5, without=["optimizer.pt"])

    assert [problem.file for problem in layouts.inspect(folder).problems] == ["optimizer.pt"]


def test_a_checkpoint_made_again_is_another_save_of_the_same_step(tmp_path: Path) -> None:
    before = layouts.inspect(make_checkpoint(tmp_path, 5)).files

    after = layouts.inspect(make_checkpoint(tmp_path, 5, content="again", saved_at=2_000_000_000))

    assert after.complete
    assert after.files != before


def test_a_file_whose_name_is_not_utf_8_is_left_out_and_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 4)
    plain = layouts.inspect(folder)
    (tmp_path / "checkpoint-4" / os.fsdecode(b"caf\xe9.txt")).write_text("left by somebody")

    verdict = layouts.inspect(folder)

    assert verdict.complete
    assert verdict.files == plain.files
    assert verdict.notes == ("'caf\\udce9.txt' is left out: its name is not UTF-8",)
    assert fingerprint(marker.files(folder)) == fingerprint(verdict.files)
