"""Which save continues which, told by attempts, steps and rows; the clock has no say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptsync.checkpoint import Receipt, Rows, Snapshot
from ckptsync.record import Attempt
from ckptsync.upload.lineage import Appearance, Position, Relation, Save, position, relation

CREATED, CHANGED, PRESENT = Appearance.CREATED, Appearance.CHANGED, Appearance.PRESENT
NEXT, OLDER, RESTARTED = Relation.NEXT, Relation.OLDER, Relation.RESTARTED


def receipt(step: int, *, sequence: int, attempt: int | None = None) -> Receipt:
    return Receipt(
        snapshot=f"checkpoint-{step}.0", step=step, saved_at=0.0, sequence=sequence, artifact="e/p/checkpoint-r", version="v0",
        digest="", bytes=1, files=1, seconds=1.0, committed_at=0.0, attempt=attempt,
    )  # fmt: skip


def snapshot(step: int, *, sequence: int, saved_at: float = 0.0, attempt: int | None = None) -> Snapshot:
    return Snapshot(
        directory=Path(), checkpoint=f"checkpoint-{step}", step=step, fingerprint="0", saved_at=saved_at, layout="plain",
        resumable=True, pinned_by="link", sequence=sequence, files=(), attempt=attempt,
    )  # fmt: skip


def attempt(number: int, resumed_step: int | None = None) -> Attempt:
    return Attempt(number, "id", 0.0, resumed_step)


def rows(*values: str) -> Rows:
    """A history of that many rows, with a digest that is the history itself."""
    return Rows(len(values), 1, "|".join(values))


def save(step: int, *values: str, attempt: int | None = None) -> Save:
    return Save(step, attempt, rows(*values)) if values else Save(step, attempt)


def related(one: Save, before: Position | None, appearance: Appearance) -> Relation:
    def prefix(each: Save) -> str:
        return each.rows.digest

    def digest(each: Save, count: int) -> str | None:
        values = prefix(each).split("|") if each.rows.count else []
        return "|".join(values[:count]) if len(values) >= count else None

    return relation(
        one,
        before,
        appearance,
        own=lambda count: digest(one, count),
        theirs=lambda count: digest(before.save, count) if before else None,
    )


def test_the_first_save_of_a_training_is_the_next_one() -> None:
    assert position(attempt(1), []) is None
    assert related(save(5), None, CREATED) is NEXT


def test_the_position_is_what_was_pinned_last_whatever_the_clock_said() -> None:
    found = position(None, [receipt(200, sequence=2), snapshot(300, sequence=3, saved_at=-1e9), receipt(100, sequence=1)])

    assert found == Position(Save(300))


def test_a_resumed_attempt_counts_from_the_step_that_it_resumed_from() -> None:
    found = position(attempt(2, resumed_step=100), [receipt(200, sequence=9, attempt=1)])

    assert found == Position(Save(100, 2), resumed=True)


def test_a_resumed_attempt_counts_from_its_own_saves_as_soon_as_it_has_some() -> None:
    found = position(attempt(2, resumed_step=100), [receipt(200, sequence=9, attempt=1), receipt(110, sequence=10, attempt=2)])

    assert found == Position(Save(110, 2))


def test_an_attempt_that_resumed_from_nothing_beside_saves_has_to_get_beyond_them() -> None:
    before = position(attempt(2), [receipt(200, sequence=9, attempt=1)])

    assert before == Position(Save(200, 2), resumed=True)
    assert related(save(10, attempt=2), before, CREATED) is RESTARTED


@pytest.mark.parametrize(
    ("step", "expected"), [(90, RESTARTED), (100, RESTARTED), (101, NEXT)], ids=["below", "the same step", "above"]
)
def test_the_first_save_after_a_resume_lies_above_the_step(step: int, expected: Relation) -> None:
    before = position(attempt(2, resumed_step=100), [receipt(100, sequence=1, attempt=1)])

    assert related(save(step, attempt=2), before, CREATED) is expected


def test_a_save_of_an_earlier_attempt_is_older_however_high_its_step() -> None:
    assert related(save(200, attempt=1), Position(Save(110, 2)), CHANGED) is OLDER


def test_a_save_of_a_later_attempt_is_the_next_one_however_low_its_step() -> None:
    assert related(save(110, attempt=2), Position(Save(200, 1)), CREATED) is NEXT


def test_the_same_step_may_be_saved_again() -> None:
    assert related(save(50, attempt=1), Position(Save(50, 1)), CHANGED) is NEXT


def test_a_new_folder_of_a_lower_step_comes_from_a_training_that_restarted() -> None:
    assert related(save(10), Position(Save(200)), CREATED) is RESTARTED


def test_an_old_folder_that_somebody_put_a_file_into_is_only_older() -> None:
    assert related(save(10), Position(Save(200)), CHANGED) is OLDER
    assert related(save(10, "a"), Position(save(200, "a", "b")), CHANGED) is OLDER


def test_an_old_folder_that_another_training_overwrote_shows_a_restart() -> None:
    assert related(save(10, "x"), Position(save(200, "a", "b")), CHANGED) is RESTARTED


def test_what_was_there_before_the_first_scan_never_shows_a_restart() -> None:
    assert related(save(10), Position(Save(200)), PRESENT) is OLDER
    assert related(save(10, "x"), Position(save(200, "a", "b")), PRESENT) is OLDER
    assert related(save(300, "x", "y", "z"), Position(save(200, "a", "b")), PRESENT) is OLDER


def test_the_checkpoint_that_was_resumed_from_is_still_made_durable_when_nobody_had_watched() -> None:
    before = position(attempt(3, resumed_step=40), [receipt(20, sequence=1, attempt=1)])

    assert related(save(40), before, PRESENT) is NEXT


def test_rows_tell_a_training_that_went_on_from_another_one() -> None:
    before = Position(save(200, "a", "b"))

    assert related(save(300, "a", "b", "c"), before, CREATED) is NEXT
    assert related(save(300, "x", "y", "z"), before, CREATED) is RESTARTED


def test_where_one_of_the_two_has_no_rows_the_step_decides() -> None:
    assert related(save(300), Position(save(200, "a")), CREATED) is NEXT
    assert related(save(300, "a"), Position(Save(200)), CREATED) is NEXT


@given(steps=st.lists(st.integers(1, 1000), min_size=1, max_size=20), times=st.randoms(use_true_random=False))
def test_no_order_of_modification_times_changes_the_position(steps: list[int], times: object) -> None:
    known = [snapshot(step, sequence=number, saved_at=hash((times, number)) % 1e9) for number, step in enumerate(steps)]

    assert position(None, known) == Position(Save(steps[-1]))


@given(
    first=st.integers(1, 100),
    more=st.lists(st.integers(1, 50), max_size=10),
    appearance=st.sampled_from(Appearance),
    with_attempt=st.booleans(),
)
def test_a_training_that_goes_on_is_never_taken_for_one_that_restarted(
    first: int, more: list[int], appearance: Appearance, with_attempt: bool
) -> None:
    history: list[str] = []
    before: Position | None = None
    step = first
    for increment in [0, *more]:
        step += increment
        history.append(str(step))
        following = save(step, *history, attempt=1 if with_attempt else None)

        assert related(following, before, appearance) is NEXT

        before = Position(following)
