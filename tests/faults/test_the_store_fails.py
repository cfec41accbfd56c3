"""One watcher lives through every way in which a store can fail, and each checkpoint becomes one version."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Followed, Note
from tests.integration.conftest import wait_for
from tests.server_process import ServerProcess

STALL = 5.0
FILES = {"method": "PUT", "path": "/storage/content"}
LONGER_THAN_THE_CLIENT_TRIES = 3.0
"""Seconds. The client's own retries are cut to one each, at most a second later."""


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory, server: ServerProcess) -> Iterator[Followed]:
    """The watcher of this module."""
    watched = Followed(tmp_path_factory.mktemp("faults"), server, "faults", "--stall-timeout", str(STALL))
    watched.start()
    yield watched
    watched.kill()


def rule(match: dict[str, str], count: int | None, **action: Any) -> dict[str, Any]:
    return {"match": match, "action": action, **({"count": count} if count else {})}


def attempts(said: str) -> str:
    """How often an upload was tried, with the lines about it checked: one when it starts to fail, one when it succeeds."""
    failing, recovered = said.count("failed, retrying"), said.count("succeeded after")
    assert failing == recovered <= 1, said
    failed = sum(map(int, re.findall(r"succeeded after (\d+) failed", said)))
    return f"{failed + said.count('uploading checkpoint')} attempts, {failing + recovered} log lines about it"


@pytest.mark.parametrize(
    ("fault", "rules"),
    [
        ("5xx to files", [rule(FILES, 20, status=503)]),
        pytest.param("5xx to the API", [rule({"operation": "CreateArtifact"}, 3, status=500)], marks=pytest.mark.slow),
        pytest.param("429 with Retry-After", [rule(FILES, 20, status=429, headers={"Retry-After": "1"})], marks=pytest.mark.slow),
        ("connection dropped in the upload", [rule(FILES, 20, drop="during")]),
        ("connection dropped in the commit's answer", [rule({"operation": "CommitArtifact"}, 2, drop="after")]),
        pytest.param("expired upload URL", [rule(FILES, 8, status=403)], marks=pytest.mark.slow),
    ],
)
def test_an_upload_is_tried_again_until_it_stands(
    followed: Followed, note: Note, fault: str, rules: list[dict[str, Any]]
) -> None:
    before = len(followed.said())
    followed.server.faults(rules)

    followed.durable(followed.save())

    hits = sum(followed.server.fault_hits())
    assert hits > 0
    wait_for(lambda: "uploaded checkpoint" in followed.said()[before:], what="the last line")
    time.sleep(0.1)
    note(fault, f"{hits} requests failed; {attempts(followed.said()[before:])}; uploaded", followed.damage())


def test_a_slow_server_is_waited_for(followed: Followed, note: Note) -> None:
    before = len(followed.said())
    followed.server.faults([rule(FILES, None, throttle=100_000)])

    followed.durable(followed.save(size=300_000))

    said = followed.said()[before:]
    assert said.count("uploading checkpoint") == 1
    assert "failed" not in said
    note("slow server", f"{attempts(said)}; uploaded", followed.damage())


def test_an_upload_that_stands_still_is_ended_and_tried_again(followed: Followed, note: Note) -> None:
    before = len(followed.said())
    followed.server.faults([rule(FILES, 1, delay=120)])

    followed.durable(followed.save())

    said = wait_for(lambda: (text := followed.said()[before:]) and "succeeded after" in text and text, what="the recovery")
    assert f"no progress for {STALL:.0f} s" in said
    note("server that stops answering", f"ended after {STALL:.0f} s; {attempts(said)}; uploaded", followed.damage())


def test_a_sync_run_that_somebody_deleted_is_followed_by_another(followed: Followed, note: Note) -> None:
    followed.kill()
    message = "injected: run was previously created and deleted; try a new run name"
    followed.server.faults([rule({"operation": "UpsertBucket"}, 1, graphql_errors=message)])
    name = followed.save()

    followed.start()
    followed.durable(name)

    assert "was deleted from the server: uploading with a new one" in followed.said()
    note("a sync run that was deleted", "uploaded by the next id", followed.damage())


@pytest.mark.slow
def test_a_server_that_is_gone_for_longer_than_the_client_tries_is_waited_for(followed: Followed, note: Note) -> None:
    before = len(followed.said())
    followed.server.kill()

    name = followed.save()
    wait_for(lambda: "failed, retrying" in followed.said()[before:], what="the first failure")
    time.sleep(LONGER_THAN_THE_CLIENT_TRIES)
    followed.server.start()
    followed.durable(name)

    said = wait_for(lambda: (text := followed.said()[before:]) and "succeeded after" in text and text, what="the recovery")
    note("server gone for longer than all of wandb's retries", f"{attempts(said)}; uploaded", followed.damage())


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_of_an_upload_is_waited_for(followed: Followed, note: Note) -> None:
    before = len(followed.said())
    followed.server.faults([rule(FILES, None, throttle=50_000)])

    name = followed.save(size=400_000)
    wait_for(lambda: any(followed.server.fault_hits()), what="an upload under way")
    followed.server.kill()
    time.sleep(LONGER_THAN_THE_CLIENT_TRIES)
    followed.server.start()
    followed.durable(name)

    said = wait_for(lambda: (text := followed.said()[before:]) and "succeeded after" in text and text, what="the recovery")
    note("server killed in the middle of an upload", f"{attempts(said)}; uploaded", followed.damage())


@pytest.mark.slow
def test_a_store_that_is_silent_about_its_features_once_is_not_given_other_digests_for_ever(
    tmp_path: Path, server: ServerProcess, note: Note
) -> None:
    """Without an answer the client takes every version for one with MD5."""
    followed = Followed(tmp_path, server, "silent")
    followed.save()
    assert followed.once().returncode == 0
    server.faults([rule({"operation": "ServerFeaturesQuery"}, 1, status=403)])

    followed.save()
    done = followed.once()

    assert done.returncode == 0, done.stderr
    assert server.fault_hits() == [1]
    note("features asked for, no answer", "uploaded, with the digests of the version before", followed.damage())


def test_while_the_store_is_away_the_newest_are_kept_within_the_limit_and_what_went_is_told(
    tmp_path: Path, server: ServerProcess, note: Note
) -> None:
    limited = Followed(tmp_path, server, "limited", "--backlog", "all", "--spool-limit", "250K")
    limited.start()
    server.faults([rule({"path": "/graphql"}, None, status=503)])

    names: list[str] = []
    for _ in range(6):
        names.append(limited.save(size=40_000))
        wait_for(lambda: limited.said().count("pinned checkpoint") == len(names), what="the pin")
    wait_for(lambda: len(limited.spool.pending()) <= 3, what="what is dropped after the pin")
    waiting = [each.checkpoint for each in limited.spool.pending()]
    server.faults([])
    limited.durable(names[-1])
    limited.kill()

    dropped = [name for name in names if f"dropped {name} from the queue to stay within the spool limit" in limited.said()]
    # The one in hand may be an older one: it is spared, and counts.
    assert len(waiting) == 3
    assert waiting[1:] == names[4:]
    assert sorted([*dropped, *waiting]) == sorted(names)
    limited.saves = {name: limited.saves[name] for name in waiting}
    note("store away, queue over its limit", f"the newest {len(waiting)} kept and uploaded, the others told", limited.damage())


def test_what_a_quota_stopped_is_parked_and_follows_at_the_next_start(followed: Followed, note: Note) -> None:
    followed.server.faults([rule({"operation": "CreateArtifact"}, 1, graphql_errors="injected: storage quota exceeded")])

    parked = followed.save()
    wait_for(followed.spool.parked, what="the parked one")
    followed.kill()
    followed.start()
    followed.durable(parked)

    note("quota", "parked; uploaded at the next start", followed.damage())
