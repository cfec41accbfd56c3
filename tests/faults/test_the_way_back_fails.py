"""Downloads through a failing line: the bytes that arrive are right, or they are not used."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests import evidence
from tests.faults.conftest import Followed, Note, mounted
from tests.integration.conftest import wait_for
from tests.server_process import ServerProcess

FILES = {"method": "GET", "path": "/storage/content"}
SIZE = 2_000_000
RESUME = ("resume", "back", "--download-only", "--output-dir")
AFTER_THE_MANIFEST = 1
"""The first file that a download reads is the manifest, by the client itself."""


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory, server: ServerProcess) -> Followed:
    """Two checkpoints, both on the server."""
    followed = Followed(tmp_path_factory.mktemp("back"), server, "back")
    for _ in range(2):
        followed.save(size=SIZE)
    done = followed.once()
    assert done.returncode == 0, done.stderr
    followed.make_run()
    return followed


def rule(count: int | None, skip: int = AFTER_THE_MANIFEST, **action: Any) -> dict[str, Any]:
    return {"match": FILES, "skip": skip, "action": action, **({"count": count} if count else {})}


def fill(path: Path) -> None:
    """Write until nothing more goes in."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(descriptor, b"\0" * 4096)
    os.close(descriptor)


def damage_of(followed: Followed, into: Path, name: str) -> evidence.Damage:
    """Whether the newest checkpoint arrived whole, and nothing else did."""
    arrived = {path.name: evidence.digests(path) for path in into.glob("checkpoint-*")}
    torn = tuple(each for each, files in arrived.items() if files != followed.saves[each])
    return evidence.Damage(lost=() if name in arrived else (name,), torn=torn, duplicate=tuple(evidence.leftovers(into)))


@pytest.mark.parametrize(
    ("fault", "rules"),
    [
        ("body corrupted on download, once", [rule(1, corrupt=True)]),
        pytest.param("expired download URL", [rule(8, status=403)], marks=pytest.mark.slow),
        pytest.param("connection dropped in a download", [rule(4, drop="during")], marks=pytest.mark.slow),
        pytest.param("5xx on download", [rule(8, status=503)], marks=pytest.mark.slow),
    ],
)
def test_the_newest_arrives_whole(
    tmp_path: Path, uploaded: Followed, note: Note, fault: str, rules: list[dict[str, Any]]
) -> None:
    uploaded.server.faults(rules)

    done = uploaded.resume(tmp_path / "new")

    assert done.returncode == 0, done.stderr
    hits = sum(uploaded.server.fault_hits())
    assert hits == rules[0]["count"]
    note(fault, f"{hits} answers were bad; the newest arrived whole", damage_of(uploaded, tmp_path / "new", "checkpoint-20"))


def test_a_version_that_stays_corrupt_is_told_and_the_one_before_is_taken(tmp_path: Path, uploaded: Followed, note: Note) -> None:
    weights = next(path for path in uploaded.output_dir.glob("checkpoint-20/model.safetensors"))
    digest = evidence.hexadecimal(weights.read_bytes())
    uploaded.server.faults([{"match": {"method": "GET", "path": digest}, "action": {"corrupt": True}}])

    done = uploaded.resume(tmp_path / "new")

    assert done.returncode == 0, done.stderr
    assert "model.safetensors does not have the digest of its manifest" in done.stderr
    note(
        "body corrupted on every download",
        "says so and takes the version before",
        damage_of(uploaded, tmp_path / "new", "checkpoint-10"),
    )


@pytest.mark.slow
def test_a_version_that_stays_unreadable_gives_way_to_the_one_before_where_the_store_answers(
    tmp_path: Path, uploaded: Followed, note: Note
) -> None:
    weights = next(path for path in uploaded.output_dir.glob("checkpoint-20/model.safetensors"))
    digest = evidence.hexadecimal(weights.read_bytes())
    uploaded.server.faults([{"match": {"method": "GET", "path": digest}, "action": {"status": 500}}])

    done = uploaded.resume(tmp_path / "new", CKPTSYNC_RETRY_FOR="2")
    alone = uploaded.tool("resume", "back:step-20", "--output-dir", tmp_path / "alone", "--download-only", CKPTSYNC_RETRY_FOR="2")
    verified = uploaded.tool("verify", "back:step-20", "--remote")

    assert done.returncode == 0, done.stderr
    assert "cannot be read, although the store answers" in done.stderr
    assert (alone.returncode, verified.returncode) == (5, 5)
    note(
        "an object that stays unreadable",
        "says so and takes the version before; alone, 5",
        damage_of(uploaded, tmp_path / "new", "checkpoint-10"),
    )


@pytest.mark.slow
def test_a_disk_that_fills_up_in_the_middle_ends_the_download_and_the_next_try_goes_on(
    tmp_path: Path, uploaded: Followed, note: Note
) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=80m", "tmpfs") as small:
        uploaded.server.faults([rule(None, throttle=1_000_000)])
        resuming = uploaded.tool.start(*RESUME, small / "new", log=tmp_path / "log")
        wait_for(lambda: any(uploaded.server.fault_hits()), what="a download under way")
        fill(small / "filler")
        code = resuming.wait(60)
        said = (tmp_path / "log").read_text()
        uploaded.server.faults([])
        (small / "filler").unlink()

        done = uploaded.resume(small / "new")

        assert code == 1, said
        assert "No space left on device" in said
        assert done.returncode == 0, done.stderr
        note(
            "ENOSPC in incoming",
            "ended at once, saying so; the next try went on",
            damage_of(uploaded, small / "new", "checkpoint-20"),
        )


def test_a_disk_without_room_is_told_before_the_download(tmp_path: Path, uploaded: Followed, note: Note) -> None:
    with mounted(tmp_path / "tiny", "-t", "tmpfs", "-o", "size=60m", "tmpfs") as tiny:
        before = len(uploaded.server.requests())

        done = uploaded.resume(tiny)

        assert done.returncode == 1
        assert "free" in done.stderr
        assert not [each for each in uploaded.server.requests()[before:] if each["path"].startswith("/storage/content/")]
        note("too little room for a download", "told before the first byte", evidence.Damage())


@pytest.mark.slow
def test_a_killed_download_goes_on_where_it_was(tmp_path: Path, uploaded: Followed, note: Note) -> None:
    slow = evidence.hexadecimal((uploaded.output_dir / "checkpoint-20" / "model.safetensors").read_bytes())
    uploaded.server.faults([{"match": {"method": "GET", "path": slow}, "action": {"throttle": 200_000}}])
    new = tmp_path / "new"
    resuming = uploaded.tool.start(*RESUME, new, log=tmp_path / "log")
    wait_for(
        lambda: len(list(new.glob(".ckptsync/incoming/*/*"))) == len(uploaded.saves["checkpoint-20"]), what="all files begun"
    )
    time.sleep(0.3)
    resuming.kill()
    resuming.wait(30)
    uploaded.server.faults([])
    before = len(uploaded.server.requests())

    done = uploaded.resume(new)

    assert done.returncode == 0, done.stderr
    asked = [each["path"] for each in uploaded.server.requests()[before:] if each["path"].startswith("/storage/content/")]
    assert len(asked) == 2
    assert slow in asked[1]
    note("kill -9 in a download", "only the unfinished file was asked for again", damage_of(uploaded, new, "checkpoint-20"))


@pytest.mark.slow
def test_a_server_that_is_away_at_a_resume_is_told_with_its_own_exit_code(tmp_path: Path, uploaded: Followed, note: Note) -> None:
    uploaded.server.kill()

    try:
        done = uploaded.resume(tmp_path / "new", timeout=170)
    finally:
        uploaded.server.start()

    assert done.returncode == 6, done.stderr
    note("server gone at a resume", "exit 6 after the patience of a person", evidence.Damage())
