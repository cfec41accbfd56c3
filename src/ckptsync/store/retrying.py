"""When to retry. The only module that imports tenacity; every wait in it ends when the stop event is set."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ckptsync.errors import TransientStoreError

if TYPE_CHECKING:
    import tenacity

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to retry: `first` and `longest` bound the random wait in seconds; `give_up_after` counts from the first failure.

    With None, for ever.
    """

    first: float = 1.0
    longest: float = 120.0
    give_up_after: float | None = None


HURRIED_WAIT = 1.0
"""Seconds between two attempts, at most, during the grace period."""

FOR_EVER = Patience()
"""For the watcher: days without network end in an upload."""

INTERACTIVE = Patience(first=0.5, longest=5.0, give_up_after=20.0)
"""For commands that a person waits for."""


def retry(
    unit: Callable[[], Result],
    *,
    what: str,
    patience: Patience,
    stop: threading.Event | None = None,
    reached: Callable[[], int] = lambda: 0,
    hurried: Callable[[], bool] = lambda: False,
) -> Result:
    """Call `unit` until it succeeds. Raises its last error when it fails for good, the patience ends, or `stop` is set.

    Full jitter with a cap (exponential backoff as AWS describes it), so that many watchers don't retry in step; longer where the
    store asked for it. Logs the
    first failure and the recovery, once each. `reached` returns the unit's progress: a failure after new progress counts as the
    first one, so that a flaky connection doesn't end a long transfer. Once `hurried` returns True, every wait is short, the
    current one included.
    """
    failures = 0
    failing_since, furthest = math.inf, reached()
    refused: TransientStoreError | None
    try:
        return unit()
    except TransientStoreError as error:
        refused = error
    # Only now: it imports asyncio, 4 MB of memory, and a watcher whose store is reachable retries nothing.
    import tenacity

    stop = stop or threading.Event()
    backoff = tenacity.wait_random_exponential(multiplier=patience.first, max=patience.longest)

    def first_known() -> Result:
        nonlocal refused
        if refused:
            known, refused = refused, None
            raise known
        return unit()

    def ended(_state: tenacity.RetryCallState) -> bool:
        nonlocal failing_since, furthest
        now, further = time.monotonic(), reached()
        if further > furthest or failing_since == math.inf:
            failing_since, furthest = now, further
        out_of_patience = patience.give_up_after is not None and now - failing_since >= patience.give_up_after
        return stop.is_set() or out_of_patience

    def wait(seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not stop.wait(min(left, HURRIED_WAIT)) and not hurried():
            pass

    def pause(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(backoff(state), error.retry_after if isinstance(error, TransientStoreError) else 0.0)

    def failing(state: tenacity.RetryCallState) -> None:
        nonlocal failures
        failures += 1
        error = state.outcome.exception() if state.outcome else None
        level = logging.WARNING if failures == 1 else logging.DEBUG
        log.log(level, "%s failed, retrying: %s", what, error)

    result = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientStoreError),
        wait=pause,
        stop=ended,
        sleep=wait,
        before_sleep=failing,
        reraise=True,
    )(first_known)
    # False: there was nothing left to do.
    if failures and result is not False:
        log.warning("%s succeeded after %d failed attempt%s", what, failures, "s" if failures > 1 else "")
    return result
