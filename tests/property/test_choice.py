"""What goes next, what is let go, for every queue."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ckptsync.checkpoint import File, Snapshot, TrainingState
from ckptsync.store.artifact import is_best
from ckptsync.upload.upload_queue import choose, over_limit


@st.composite
def queues(draw: st.DrawFn) -> list[Snapshot]:
    """Snapshots in any order on disk, each of which may call itself or an older one the best."""
    steps = draw(st.lists(st.integers(1, 10_000), max_size=8))
    sequences = draw(st.permutations(range(1, len(steps) + 1)))
    found = []
    for step, sequence in zip(steps, sequences, strict=True):
        best = draw(st.sampled_from([None, f"/out/checkpoint-{step}", "/out/checkpoint-1"]))
        state = draw(st.sampled_from([None, TrainingState(step, 10_000, best_checkpoint=best)]))
        files = (File("model.safetensors", draw(st.integers(0, 100)), 0),)
        name = f"checkpoint-{step}"
        found.append(
            Snapshot(Path(f"{name}.{sequence}"), name, step, str(sequence), 0.0, "plain", True, "link", sequence, files, state)
        )
    return found


@given(queues(), st.booleans())
def test_every_snapshot_is_chosen_dropped_or_still_waiting_and_the_newest_is_never_dropped(
    queue: list[Snapshot], keep_all: bool
) -> None:
    chosen, dropped = choose(queue, keep_all=keep_all)

    newest = max(queue, key=lambda each: each.sequence, default=None)
    assert (chosen is None) == (not queue)
    assert chosen is None or chosen in queue
    assert chosen not in dropped
    assert newest not in dropped
    assert all(each in queue for each in dropped)


@given(queues())
def test_with_the_whole_backlog_nothing_is_dropped_and_all_goes_in_the_order_of_saving(queue: list[Snapshot]) -> None:
    uploaded = []

    while queue:
        chosen, dropped = choose(queue, keep_all=True)
        assert chosen is not None
        assert dropped == []
        uploaded.append(chosen.sequence)
        queue.remove(chosen)

    assert uploaded == sorted(uploaded)


@given(queues())
def test_behind_at_most_the_best_and_the_newest_go_and_the_newest_goes_last(queue: list[Snapshot]) -> None:
    newest = max(queue, key=lambda each: each.sequence, default=None)
    best = max((each for each in queue if is_best(each)), key=lambda each: each.sequence, default=None)
    uploaded: list[Snapshot] = []

    while queue:
        chosen, dropped = choose(queue, keep_all=False)
        assert chosen is not None
        uploaded.append(chosen)
        queue = [each for each in queue if each is not chosen and each not in dropped]

    expected = {each.sequence for each in (best, newest) if each}
    assert {each.sequence for each in uploaded} == expected
    assert uploaded[-1:] == ([newest] if newest else [])


@given(queues(), st.one_of(st.none(), st.integers(0, 500)))
def test_within_a_limit_the_oldest_go_and_no_more_than_have_to(queue: list[Snapshot], limit: int | None) -> None:
    dropped = over_limit(queue, limit)

    in_order = sorted(queue, key=lambda each: each.sequence)
    kept = in_order[len(dropped) :]
    assert dropped == in_order[: len(dropped)]
    assert limit is not None or not dropped
    assert limit is None or len(kept) <= 1 or sum(each.bytes for each in kept) <= limit
    if dropped and limit is not None:
        assert sum(each.bytes for each in [dropped[-1], *kept]) > limit
    assert bool(kept) == bool(queue)
