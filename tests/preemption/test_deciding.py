"""What is decided without any process: restarts, and whether an upload fits into a notice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ckptsync.job import grace_period
from ckptsync.job.grace_period import GraceCheck
from ckptsync.job.restart_policy import CRASH_LOOP, LONGEST_PAUSE, RestartPolicy


def test_without_restarts_a_failure_is_the_end() -> None:
    decision = RestartPolicy(0).after(1, before=0, reached=40)

    assert decision.pause is None
    assert decision.reason == "the training failed with 1 after step 40"


def test_restarts_are_spent_one_by_one_while_there_is_progress() -> None:
    restarts = RestartPolicy(2)

    decisions = [restarts.after(9, before=step, reached=step + 10) for step in (0, 10, 20)]

    assert [decision.pause for decision in decisions] == [1.0, 1.0, None]
    assert "its 2 restarts are spent" in decisions[-1].reason


def test_three_failures_in_a_row_without_a_new_checkpoint_are_a_crash_loop() -> None:
    restarts = RestartPolicy(10)

    decisions = [restarts.after(7, before=20, reached=20) for _ in range(3)]

    assert [decision.pause for decision in decisions] == [1.0, 2.0, None]
    assert "3 times in a row without a checkpoint above step 20: a crash loop" in decisions[-1].reason


@given(st.integers(0, 30), st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_training_is_never_started_again_more_often_than_allowed_or_in_a_loop(limit: int, progress: list[bool]) -> None:
    restarts, step, started, fruitless = RestartPolicy(limit), 0, 0, 0

    for gained in progress:
        decision = restarts.after(1, before=step, reached=step + gained)
        step += gained
        fruitless = 0 if gained else fruitless + 1
        if decision.pause is None:
            break
        started += 1
        assert 0 < decision.pause <= LONGEST_PAUSE

    assert started <= limit
    assert fruitless <= CRASH_LOOP


def test_an_upload_that_does_not_fit_is_warned_of_once_with_the_numbers_and_what_to_do() -> None:
    fit = GraceCheck()

    first = fit.warning(size=84_000_000_000, seconds=672, grace=30)
    again = [fit.warning(size=84_000_000_000, seconds=seconds, grace=30) for seconds in (650, 700, 900)]
    much_slower = fit.warning(size=84_000_000_000, seconds=1100, grace=30)

    assert first is not None
    assert all(part in first for part in ("672 s", "84 GB", "125 MB/s", "30 s", "--grace", "Save more often"))
    assert again == [None, None, None]
    assert much_slower is not None


def test_an_upload_that_fits_gives_no_warning_and_one_that_stops_fitting_does() -> None:
    fit = GraceCheck()

    told = [fit.warning(size=1000, seconds=seconds, grace=120) for seconds in (20, 121, 20, 121)]

    assert [text is not None for text in told] == [False, True, False, True]


def test_without_a_known_grace_period_there_is_no_warning() -> None:
    assert GraceCheck().warning(size=1000, seconds=1000, grace=None) is None


def test_the_shortest_grace_period_of_this_machine_counts() -> None:
    assert grace_period.usual([], {}) is None
    assert grace_period.usual(["aws"], {}) == 120
    assert grace_period.usual(["aws"], {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == 30
