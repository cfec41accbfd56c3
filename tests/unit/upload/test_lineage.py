"""When a training started over, as a table."""

from __future__ import annotations

import pytest

from ckptsync.checkpoint import Receipt
from ckptsync.record import Record
from ckptsync.upload.lineage import Progress, left_behind, progress, started_over


def receipt(step: int, saved_at: float, *, sequence: int) -> Receipt:
    return Receipt(f"checkpoint-{step}.x", step, saved_at, sequence, "me/p/c", f"v{sequence}", "d", 1, 1, 0.0, saved_at)


SAVED = Progress(step=500, at=1000.0, resumed=False)
RESUMED = Progress(step=500, at=1000.0, resumed=True)


@pytest.mark.parametrize(
    ("before", "step", "saved_at", "over", "behind"),
    [
        (None, 5, 2000.0, False, False),
        (SAVED, 600, 2000.0, False, False),
        (SAVED, 500, 2000.0, False, False),
        (SAVED, 499, 2000.0, True, False),
        (SAVED, 100, 900.0, False, True),
        (SAVED, 100, 1000.0, False, True),
        (SAVED, 600, 900.0, False, False),
        (RESUMED, 501, 2000.0, False, False),
        (RESUMED, 500, 2000.0, True, False),
        (RESUMED, 10, 2000.0, True, False),
        (RESUMED, 500, 900.0, False, False),
        (RESUMED, 400, 900.0, False, True),
        (RESUMED, 700, 900.0, False, False),
    ],
)
def test_a_checkpoint_is_new_or_of_a_training_that_started_over_or_left_behind(
    before: Progress | None, step: int, saved_at: float, over: bool, behind: bool
) -> None:
    assert started_over(step, saved_at, before) is over
    assert left_behind(step, saved_at, before) is behind


def test_a_first_start_has_no_progress() -> None:
    assert progress(Record({}), []) is None
    assert progress(Record({"resumed_at": 5.0}), []) is None


def test_a_resume_counts_until_something_newer_is_durable() -> None:
    resumed = Record({"resumed_step": 500, "resumed_at": 1000.0})

    assert progress(resumed, []) == Progress(500, 1000.0, resumed=True)
    assert progress(resumed, [receipt(900, 990.0, sequence=9)]) == Progress(500, 1000.0, resumed=True)
    assert progress(resumed, [receipt(600, 1100.0, sequence=9)]) == Progress(600, 1100.0, resumed=False)


def test_the_newest_receipt_is_the_one_pinned_last_whatever_the_clock_said() -> None:
    receipts = [receipt(500, 2000.0, sequence=1), receipt(600, 1000.0, sequence=2)]

    assert progress(Record({}), receipts) == Progress(600, 1000.0, resumed=False)
