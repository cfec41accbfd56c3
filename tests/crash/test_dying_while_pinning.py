"""A process that dies at any file event of a pin leaves a queue that a plain start completes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ckptsync.errors import PermanentStoreError
from ckptsync.upload.spool import Spool
from tests import evidence
from tests.checkpoints import checkpoint_at, make_checkpoint
from tests.crash import deaths
from tests.crash.conftest import Sweep


def pin(output_dir: Path) -> None:
    """What a start of the watcher does with one whole checkpoint."""
    spool = Spool(output_dir)
    spool.prepare()
    checkpoint = checkpoint_at(output_dir / "checkpoint-10")
    if not spool.knows(f"{checkpoint.name}.{checkpoint.fingerprint}"):
        spool.pin(checkpoint)


def park_and_try_again(output_dir: Path) -> None:
    """What becomes of it after a permanent error, and at the next start."""
    spool = Spool(output_dir)
    spool.prepare()
    spool.unpark()
    for pinned in spool.pending():
        spool.park(pinned, PermanentStoreError("injected: quota"))
    spool.unpark()


def sweep(name: str, deed: Callable[[Path], None], fresh: Callable[[str], Path], tmp_path: Path) -> Sweep:
    """Die at every event of a deed, do it again, and look at what is in the queue then."""
    counted = fresh("counted")
    events = deaths.count_events(partial(deed, counted), tmp_path)
    found = Sweep(name, events)
    for n in range(1, events + 1):
        output_dir = fresh(f"death-{n}")
        saved = evidence.digests(output_dir / "checkpoint-10")
        before = evidence.look(output_dir)
        assert deaths.die_doing(partial(deed, output_dir), tmp_path, n)

        deed(output_dir)

        spool = Spool(output_dir)
        held = [evidence.Kept(each.name, frozenset(), each.step, evidence.digests(each.content)) for each in spool.pending()]
        left = len(evidence.leftovers(output_dir)) - len(held) + len(spool.parked())
        found.add(evidence.damage(held, {"checkpoint-10": saved}, wanted=["checkpoint-10"]), left)
        assert evidence.look(output_dir) == before
        shutil.rmtree(output_dir)
    return found


@pytest.mark.parametrize("by", ["link", "copy"])
def test_a_pin_that_was_cut_short_is_made_whole_by_the_next_start(tmp_path: Path, other_file_system: Path, by: str) -> None:
    def fresh(name: str) -> Path:
        output_dir = tmp_path / name
        make_checkpoint(output_dir, 10)
        if by == "copy":
            elsewhere = other_file_system / name
            elsewhere.mkdir()
            (output_dir / ".ckptsync").symlink_to(elsewhere)
        return output_dir

    sweep(f"pin by {by}", pin, fresh, tmp_path).tell()


def test_a_snapshot_that_is_parked_and_brought_back_is_in_one_place_whenever_it_ends(tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        make_checkpoint(tmp_path / name, 10)
        pin(tmp_path / name)
        return tmp_path / name

    sweep("park and bring back", park_and_try_again, fresh, tmp_path).tell()
