"""What the wandb client's errors mean: whether to try again, to wait for a person, or to look elsewhere."""

from __future__ import annotations

import pytest
import requests

from ckptsync.errors import CkptsyncError, NotFoundError, PermanentStoreError, RejectedError, TransientStoreError
from ckptsync.store.client_errors import translate


@pytest.mark.parametrize("name", ["bert-500", "exp-503", "lr-401", "timeout-fix", "read-only", "quota", "404"])
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("artifact membership 'checkpoint-{}:latest' not found in 'me/{}'", NotFoundError),
        ("Could not find run <Run me/p/{} (not found)>", NotFoundError),
        ("upload of {} failed: returned error 503: please come back", TransientStoreError),
        ("PUT https://files/{}/a: connection refused", TransientStoreError),
        ("storage quota exceeded for checkpoint-{}", PermanentStoreError),
        ("{}: permission denied for this project", PermanentStoreError),
        ("{}: returned error 401: user is not logged in", RejectedError),
    ],
)
def test_a_name_of_the_user_is_no_reason(name: str, text: str, kind: type[CkptsyncError]) -> None:
    error = translate(ValueError(text.format(name, name)), "the upload", {name, "p", "me", ""})

    assert type(error) is kind
    assert name in str(error)


@pytest.mark.parametrize("text", ["[Errno 28] No space left on device", "write: disk quota exceeded"])
def test_a_full_disk_of_this_machine_is_waited_for_and_is_no_matter_of_the_network(text: str) -> None:
    error = translate(ValueError(text), "the upload")

    assert type(error) is TransientStoreError
    assert error.hint.startswith("Free some space")


class InjectedError(Exception):
    """Named and placed as the client's own."""


InjectedError.__name__, InjectedError.__module__ = "AuthenticationError", "wandb.errors"


@pytest.mark.parametrize(
    "text",
    [
        "Failed to verify credentials: the service process is busy and did not respond in time.",
        "rate limit exceeded",
    ],
)
def test_a_server_that_is_silent_or_overloaded_refuses_no_key(text: str) -> None:
    assert isinstance(translate(InjectedError(text), "the log-in"), TransientStoreError)


def test_a_time_out_at_the_bottom_of_a_failed_log_in_is_no_refusal() -> None:
    error = InjectedError("Failed to verify credentials")
    error.__cause__ = TimeoutError("injected")

    assert isinstance(translate(error, "the log-in"), TransientStoreError)


@pytest.mark.parametrize(
    ("headers", "seconds"), [({"RateLimit-Reset": "17"}, 17), ({"Retry-After": "3"}, 3), ({}, 0), ({"Retry-After": "soon"}, 0)]
)
def test_the_time_that_a_server_asks_to_wait_is_kept(headers: dict[str, str], seconds: float) -> None:
    answer = requests.Response()
    answer.status_code = 429
    answer.headers.update(headers)
    limited = requests.HTTPError("429 Client Error: Too Many Requests", response=answer)

    error = translate(limited, "the upload")

    assert isinstance(error, TransientStoreError)
    assert error.retry_after == seconds
