"""A process that dies at any file event of a pin leaves a queue that a plain start completes."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from ckptsync.errors import PermanentStoreError
from ckptsync.spool import Spool
from tests import evidence
from tests.checkpoints import checkpoint_at, make_checkpoint
from tests.crash import deaths
from tests.figures import Table


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


@pytest.mark.parametrize("links", [True, False], ids=["by link", "by copy"])
def test_a_pin_that_was_cut_short_is_made_whole_by_the_next_start(
    tmp_path: Path, table: Table, other_file_system: Path, links: bool
) -> None:
    def fresh(name: str) -> Path:
        output_dir = tmp_path / name
        make_checkpoint(output_dir, 10)
        if not links:
            # The folder of ours lies on another file system.
            elsewhere = other_file_system / name
            elsewhere.mkdir()
            (output_dir / ".ckptsync").symlink_to(elsewhere)
        return output_dir

    counted = fresh("counted")
    events = deaths.count_events(partial(pin, counted), tmp_path)
    lost = torn = twice = left = 0
    for n in range(1, events + 1):
        output_dir = fresh(f"death-{n}")
        before = evidence.look(output_dir)
        assert deaths.die_doing(partial(pin, output_dir), tmp_path, n)

        pin(output_dir)

        pending = Spool(output_dir).pending()
        saved = evidence.digests(output_dir / "checkpoint-10")
        lost += not pending
        twice += len(pending) > 1
        torn += any(evidence.digests(each.content) != saved for each in pending)
        left += len(evidence.leftovers(output_dir)) - len(pending)
        assert evidence.look(output_dir) == before
        shutil.rmtree(output_dir)
    table.add(f"pin {'by link' if links else 'by copy'}", events, events, lost, torn, twice, left)
    assert (lost, torn, twice, left) == (0, 0, 0, 0)


def test_a_snapshot_that_is_parked_and_brought_back_is_in_one_place_whenever_it_ends(tmp_path: Path, table: Table) -> None:
    def pinned(name: str) -> Path:
        make_checkpoint(tmp_path / name, 10)
        pin(tmp_path / name)
        return tmp_path / name

    counted = pinned("counted")
    events = deaths.count_events(partial(park_and_try_again, counted), tmp_path)
    lost = torn = twice = left = 0
    for n in range(1, events + 1):
        output_dir = pinned(f"death-{n}")
        saved = evidence.digests(output_dir / "checkpoint-10")
        assert deaths.die_doing(partial(park_and_try_again, output_dir), tmp_path, n)

        park_and_try_again(output_dir)

        spool = Spool(output_dir)
        pending = spool.pending()
        lost += not pending
        twice += len(pending) + len(spool.parked()) > 1
        torn += any(evidence.digests(each.content) != saved for each in pending)
        left += len(evidence.leftovers(output_dir)) - len(pending)
    table.add("park, bring back", events, events, lost, torn, twice, left)
    assert (lost, torn, twice, left) == (0, 0, 0, 0)
