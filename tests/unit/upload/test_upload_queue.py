"""What is uploaded next, what is dropped for it, and that no upload that fails or lasts fills the disk or blocks the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptsync.checkpoint import Snapshot
from ckptsync.errors import PermanentStoreError
from ckptsync.upload.spool import Spool
from ckptsync.upload.upload_queue import TRIES_IN_ROW, UploadQueue
from tests.checkpoints import checkpoint_at, make_checkpoint


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    (tmp_path / "out").mkdir()
    spool = Spool(tmp_path / "out")
    spool.prepare()
    return spool


def pin(spool: Spool, step: int, best: int | None = None) -> Snapshot:
    path = None if best is None else str(spool.output_dir / f"checkpoint-{best}")
    return spool.pin(checkpoint_at(make_checkpoint(spool.output_dir, step, best=path)))


def queued(spool: Spool) -> list[int]:
    return [each.step for each in spool.pending()]


def parked(spool: Spool) -> list[int]:
    return [each.step for each, _ in spool.parked()]


def park(spool: Spool, snapshot: Snapshot) -> None:
    spool.park(snapshot, PermanentStoreError("injected: quota"))


def take(queue: UploadQueue) -> int | None:
    taken = queue.take(limit=None, keep_all=False, urgent=False)
    return taken.step if taken else None


def test_during_a_long_upload_only_the_newest_stays_queued_beside_it(spool: Spool) -> None:
    queue = UploadQueue(spool)
    pin(spool, 1)
    assert take(queue) == 1

    for step in (2, 3, 4, 5):
        pin(spool, step)
        queue.trim(limit=None, keep_all=False)

    assert queued(spool) == [1, 5]


def test_a_best_checkpoint_that_cannot_be_sent_lets_the_newest_go_first_after_some_failures(spool: Spool) -> None:
    queue = UploadQueue(spool)
    pin(spool, 1, best=1)
    pin(spool, 2)
    order = []

    for _ in range(2 * TRIES_IN_ROW + 1):
        order.append(take(queue))
        queue.note_failure(next(each for each in spool.pending() if each.step == order[-1]))
        queue.release()

    assert order == [1] * TRIES_IN_ROW + [2] * TRIES_IN_ROW + [1]


def test_what_is_parked_is_superseded_by_a_newer_pin(spool: Spool) -> None:
    queue = UploadQueue(spool)
    park(spool, pin(spool, 1))
    park(spool, pin(spool, 2, best=2))
    pin(spool, 3)

    queue.trim(limit=None, keep_all=False)

    assert parked(spool) == [2]
    assert queued(spool) == [3]


def test_what_is_parked_counts_for_the_spool_limit(spool: Spool) -> None:
    queue = UploadQueue(spool)
    for step in (1, 2, 3):
        park(spool, pin(spool, step))
    newest = pin(spool, 4)

    queue.trim(limit=5 * newest.bytes // 2, keep_all=True)

    assert parked(spool) == [3]
    assert queued(spool) == [4]
