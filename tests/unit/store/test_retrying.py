"""Trying again: how often, how long, and what is said."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from ckptsync.errors import PermanentStoreError, RejectedError, TransientStoreError
from ckptsync.store.retrying import Patience, retry

QUICK = Patience(first=0.001, longest=0.002)


class Unit:
    """Fails with these errors, one a call, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.calls = 0
        self._errors: Iterator[Exception] = iter(errors)

    def __call__(self) -> str:
        self.calls += 1
        for error in self._errors:
            raise error
        return "done"


def away(count: int) -> list[Exception]:
    return [TransientStoreError(f"injected: away {number}") for number in range(count)]


def test_a_transient_error_is_tried_again_until_it_works() -> None:
    unit = Unit(*away(3))

    assert retry(unit, what="the upload", patience=QUICK) == "done"
    assert unit.calls == 4


@pytest.mark.parametrize("error", [PermanentStoreError("injected: quota"), RejectedError("injected: key"), KeyError("a bug")])
def test_a_permanent_error_is_not_tried_again(error: Exception) -> None:
    unit = Unit(error)

    with pytest.raises(type(error)):
        retry(unit, what="the upload", patience=QUICK)

    assert unit.calls == 1


def test_when_the_patience_ends_the_last_error_is_raised() -> None:
    unit = Unit(*away(100_000))

    with pytest.raises(TransientStoreError, match="injected: away"):
        retry(unit, what="the upload", patience=Patience(first=0.001, longest=0.002, give_up_after=0.05))

    assert 1 < unit.calls < 1000


def test_a_wait_between_two_attempts_ends_when_the_stop_event_is_set() -> None:
    stop = threading.Event()
    unit = Unit(*away(100))
    timer = threading.Timer(0.1, stop.set)

    timer.start()
    started = time.monotonic()
    with pytest.raises(TransientStoreError):
        retry(unit, what="the upload", patience=Patience(first=600.0, longest=600.0), stop=stop)
    timer.join()

    assert time.monotonic() - started < 5
    assert unit.calls <= 2


def test_after_a_stop_one_attempt_is_made_and_none_after_it() -> None:
    stop = threading.Event()
    stop.set()
    unit = Unit(*away(100))

    with pytest.raises(TransientStoreError):
        retry(unit, what="the upload", patience=QUICK, stop=stop)

    assert unit.calls == 1


def test_failing_is_said_once_and_the_recovery_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ckptsync")

    retry(Unit(*away(5)), what="the upload", patience=QUICK)

    assert [record.message for record in caplog.records] == [
        "the upload failed, retrying: injected: away 0",
        "the upload succeeded after 5 failed attempts",
    ]


def test_success_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="ckptsync")

    retry(Unit(), what="the upload", patience=QUICK)

    assert caplog.records == []


def test_a_permanent_error_after_failures_is_no_recovery(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PermanentStoreError):
        retry(Unit(*away(2), PermanentStoreError("injected: quota")), what="the upload", patience=QUICK)

    assert not any("succeeded after" in record.message for record in caplog.records)


def test_a_unit_that_fails_after_a_long_time_is_tried_again_all_the_same() -> None:
    errors = away(1)

    def unit() -> str:
        time.sleep(0.1)
        for error in errors:
            errors.remove(error)
            raise error
        return "done"

    assert retry(unit, what="the upload", patience=Patience(first=0.001, longest=0.002, give_up_after=0.05)) == "done"


def test_a_unit_that_comes_further_each_time_is_given_the_whole_patience_again() -> None:
    calls = 0

    def unit() -> str:
        nonlocal calls
        calls += 1
        time.sleep(0.03)
        if calls < 8:
            raise TransientStoreError("injected: dropped")
        return "done"

    patience = Patience(first=0.001, longest=0.002, give_up_after=0.05)
    assert retry(unit, what="the download", patience=patience, reached=lambda: calls) == "done"


def test_a_hurry_ends_the_wait_in_hand_and_every_long_one_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, high: high)
    unit = Unit(*away(2))
    hurried = threading.Event()
    timer = threading.Timer(0.2, hurried.set)
    timer.start()
    started = time.monotonic()

    assert retry(unit, what="the upload", patience=Patience(first=600, longest=600), hurried=hurried.is_set) == "done"

    timer.join()
    assert unit.calls == 3
    assert time.monotonic() - started < 60, "without a hurry it waits for 20 minutes"


def test_a_unit_that_works_at_once_brings_nothing_along() -> None:
    program = "import sys; from ckptsync.store.retrying import INTERACTIVE, retry; retry(int, what='it', patience=INTERACTIVE)"
    program += "; print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def test_a_store_that_asks_to_wait_is_given_that_time() -> None:
    limited = TransientStoreError("injected: 429")
    limited.retry_after = 0.6
    outcomes: list[Exception | None] = [limited, None]

    def unit() -> None:
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    started = time.monotonic()
    retry(unit, what="it", patience=Patience(first=0.001, longest=0.002))

    assert time.monotonic() - started >= 0.6
