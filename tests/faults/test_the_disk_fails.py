"""File systems that are full, foreign, read-only or odd, and clocks that go backwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import evidence
from tests.faults.conftest import Followed, Note, mounted
from tests.integration.conftest import wait_for
from tests.server_process import ServerProcess

NOBODY = 65534
THREE_GIGABYTES = 3 * 10**9
DAY = 86400.0


@pytest.fixture
def followed(tmp_path: Path, server: ServerProcess, request: pytest.FixtureRequest) -> Iterator[Followed]:
    """A folder of its own for each test."""
    watched = Followed(tmp_path, server, request.node.name.split("[")[0][-40:].strip("_"))
    yield watched
    watched.kill()


def test_a_full_spool_is_told_and_the_pin_follows_when_there_is_room(followed: Followed, note: Note) -> None:
    with mounted(followed.output_dir / ".ckptsync", "-t", "tmpfs", "-o", "size=200k", "tmpfs") as small:
        followed.start()
        name = followed.save(size=300_000)
        before = evidence.look(followed.output_dir)

        wait_for(lambda: "cannot pin" in followed.said(), what="the word that it cannot be pinned")
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        followed.durable(name)

        said = followed.said()
        assert said.count("cannot pin") == said.count("pinning works again") == 1
        assert evidence.look(followed.output_dir) == before
        followed.kill()
        note("ENOSPC in the spool", "told once, tried again, uploaded when there was room", followed.damage())


@pytest.mark.slow
def test_a_spool_on_another_file_system_is_filled_by_copying_and_says_so(followed: Followed, note: Note) -> None:
    with mounted(followed.output_dir / ".ckptsync", "-t", "tmpfs", "-o", "size=50m", "tmpfs"):
        followed.save()
        quota = {"graphql_errors": "injected: quota"}
        followed.server.faults([{"match": {"operation": "CreateArtifact"}, "count": 1, "action": quota}])

        first = followed.once()
        status = followed.tool("status", followed.output_dir)
        shown = followed.tool.json("status", followed.output_dir)
        done = followed.once()

        assert "was copied: this file system supports neither" in first.stderr
        assert shown["copied"] == 1
        assert "copied" in status.stdout
        assert done.returncode == 0, done.stderr
        note("EXDEV", "copied, said in the log and in status; uploaded", followed.damage())


def test_a_read_only_folder_is_one_line_and_changes_nothing(followed: Followed, note: Note) -> None:
    followed.save()
    before = evidence.look(followed.output_dir)
    with mounted(followed.output_dir, "--bind", str(followed.output_dir)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(followed.output_dir)], check=True)

        refused = followed.once()

        assert refused.returncode == 3, refused.stderr
        assert "Read-only file system" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert evidence.look(followed.output_dir) == before
    done = followed.once()
    assert done.returncode == 0, done.stderr
    note("read-only folder", "one line, exit 3; uploaded when it could be written to", followed.damage())


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_under_the_watcher_is_lived_through(followed: Followed, note: Note) -> None:
    followed.start()
    spool = followed.spool.root / "spool"
    with mounted(spool, "--bind", str(spool)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(spool)], check=True)
        name = followed.save()
        wait_for(lambda: "cannot pin" in followed.said(), what="the word that it cannot be pinned")
    followed.durable(name)

    assert followed.said().count("cannot pin") == 1
    note("folder that becomes read-only", "told once, tried again, uploaded when it could be written to", followed.damage())


@pytest.mark.slow
def test_a_clock_that_was_set_back_changes_neither_the_order_nor_what_is_resumed(
    tmp_path: Path, followed: Followed, note: Note
) -> None:
    followed.start()
    followed.durable(followed.save(saved_at=time.time() + DAY))
    newest = followed.save(saved_at=time.time() - DAY)
    followed.durable(newest)
    followed.make_run()

    done = followed.resume(tmp_path / "new")

    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == newest
    kept = followed.kept()
    assert [f"checkpoint-{each.step}" for each in kept if "latest" in each.aliases] == [newest]
    note("clock set back by two days", "uploaded in their order; latest and resume take the last", followed.damage())


@pytest.mark.slow
def test_files_that_only_another_user_can_read_are_told_and_follow_when_they_may_be_read(followed: Followed, note: Note) -> None:
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can play two users")
    weights = followed.output_dir / followed.save() / "model.safetensors"
    weights.chmod(0o600)
    os.chown(weights, NOBODY, NOBODY)

    refused = followed.once_without_privileges()
    weights.chmod(0o644)
    done = followed.once_without_privileges()

    assert "model.safetensors: cannot be read by this user" in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr
    assert done.returncode == 0, done.stderr
    assert "by copy" in done.stderr
    note("0600 files of another uid", "said which file cannot be read; uploaded when it could", followed.damage())


def _with_many_files(followed: Followed, count: int) -> str:
    """A checkpoint with small files as some frameworks leave them, written before the last one of the Trainer."""
    name = followed.save()
    folder = followed.output_dir / name
    state = (folder / "trainer_state.json").read_bytes()
    (folder / "extra").mkdir()
    for number in range(count):
        (folder / "extra" / f"part-{number}.json").write_text(json.dumps({"part": number}))
    (folder / "trainer_state.json").write_bytes(state)
    followed.saves[name] = evidence.digests(folder)
    return name


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [pytest.param(300), pytest.param(10_000, marks=pytest.mark.slow)])
def test_very_many_small_files_become_one_version(followed: Followed, note: Note, count: int) -> None:
    _with_many_files(followed, count)
    started = time.monotonic()

    done = followed.once(timeout=500)

    assert done.returncode == 0, done.stderr
    note(f"{count:,} small files", f"one version in {time.monotonic() - started:.0f} s", followed.damage())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_file_of_three_gigabytes_goes_out_in_parts(tmp_path: Path, note: Note) -> None:
    # A server of its own, in a folder that goes away: it really writes the three gigabytes.
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder, ServerProcess(Path(folder) / "data") as server:
        followed = Followed(Path(folder), server, "three-gigabytes")
        name = followed.save()
        _grow(followed.output_dir / name, THREE_GIGABYTES)
        followed.saves[name] = evidence.digests(followed.output_dir / name)
        started = time.monotonic()

        done = followed.once(timeout=500)

        assert done.returncode == 0, done.stderr
        asked = server.requests()
        assert any(each["operation"] == "CompleteMultipartUploadArtifact" for each in asked)
        assert sum(each["method"] == "PUT" for each in asked) > THREE_GIGABYTES / (100 * 2**20)
        note("one 3 GB file", f"uploaded in parts in {time.monotonic() - started:.0f} s", followed.damage())


def _grow(folder: Path, size: int) -> None:
    """Make the weights of a checkpoint so large, with a hole for the bytes."""
    header = json.dumps({"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    state = (folder / "trainer_state.json").read_bytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    (folder / "trainer_state.json").write_bytes(state)
