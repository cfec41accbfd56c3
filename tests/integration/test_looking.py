"""`list`, `status` and `verify`: what they print for people and for programs, and what their exit codes say."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint, torch_bytes
from tests.integration.conftest import Ended, Tool, make_run, publish, refusal, wait_for
from tests.server_process import ServerProcess

LIST_KEYS = {"name", "version", "aliases", "step", "bytes", "files", "saved_at", "state"}
STATUS_KEYS = {"run", "last_durable_step", "last_durable_at", "newest_local_step", "pending", "parked", "torn"}


@pytest.fixture
def nobody(tmp_path: Path) -> Tool:
    """The command of somebody without an account and without a server."""
    return Tool(tmp_path / "nobody")


@pytest.mark.slow
def test_list_tells_every_version_newest_first(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    make_run(server, "listed")
    for step in (4, 8):
        made = make_checkpoint(tmp_path / "out", step, content="listed", saved_at=1_700_000_000 + step)
        publish(server, made, "listed")

    rows = tool.json("list", "listed")
    table = tool("list", "local/tests/listed")

    assert all(set(row) >= LIST_KEYS for row in rows)
    assert [(row["name"], row["version"], row["step"]) for row in rows] == [
        ("checkpoint-listed", "v1", 8),
        ("checkpoint-listed", "v0", 4),
    ]
    assert rows[0]["aliases"] == ["step-8", "latest"]
    assert rows[0]["bytes"] == sum(path.stat().st_size for path in made.iterdir())
    assert rows[0]["files"] == len(list(made.iterdir()))
    assert datetime.fromisoformat(rows[0]["saved_at"]).timestamp() == 1_700_000_008
    assert rows[0]["state"] == "COMMITTED"
    assert "checkpoint-listed:v1" in table.stdout
    assert "step-8, latest" in table.stdout


@pytest.mark.slow
def test_list_tells_a_run_without_checkpoints_from_one_that_is_not_there(tool: Tool, server: ServerProcess) -> None:
    make_run(server, "without-any")

    words = tool("list", "without-any")
    rows = tool.json("list", "without-any")
    unknown = tool("list", "not-there-at-all", "--json")

    assert words.returncode == 4
    assert "has no checkpoint yet" in refusal(words)
    assert rows == []
    assert unknown.returncode == 4
    assert "there is no run" in refusal(unknown)


def test_status_before_anything_happened(nobody: Tool, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    report = nobody.json("status", tmp_path / "out")

    assert set(report) >= STATUS_KEYS
    assert {report[key] for key in ("run", "last_durable_step", "last_durable_at", "newest_local_step", "watcher")} == {None}
    assert (report["pending"], report["parked"], report["torn"]) == (0, 0, 0)
    assert not list((tmp_path / "out").iterdir())


def test_status_tells_what_is_durable_and_what_is_torn(tool: Tool, nobody: Tool, server: ServerProcess, tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    saved_at = time.time() - 100
    make_checkpoint(output_dir, 4, content="status", saved_at=saved_at)
    assert tool.watch_once(output_dir, "status").returncode == 0
    make_checkpoint(output_dir, 8, content="status", without=["trainer_state.json"])

    report = nobody.json("status", output_dir)
    words = nobody("status", output_dir)

    assert (report["run"], report["project"], report["entity"]) == ("status", "tests", "local")
    assert report["last_durable_step"] == 4
    assert datetime.fromisoformat(report["last_durable_at"]).timestamp() == pytest.approx(saved_at, abs=1)
    assert report["last_durable_version"] == "local/tests/checkpoint-status:v0"
    assert report["newest_local_step"] == 8
    assert report["at_risk_seconds"] == pytest.approx(100, abs=30)
    assert (report["pending"], report["parked"], report["torn"]) == (0, 0, 1)
    assert report["torn_names"] == ["checkpoint-8"]
    assert words.returncode == 0
    assert "step 4" in words.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("age", "code"), [("1h", 0), ("60", 1), ("1m", 1)])
def test_status_exits_with_1_when_work_is_at_risk_for_longer_than_wanted(
    tool: Tool, nobody: Tool, tmp_path: Path, age: str, code: int
) -> None:
    output_dir = tmp_path / "out"
    make_checkpoint(output_dir, 4, content="max-age", saved_at=time.time() - 100)
    assert tool.watch_once(output_dir, "max-age").returncode == 0

    done = nobody("status", output_dir, "--max-age", age, "--json")

    assert done.returncode == code
    assert json.loads(done.stdout)["last_durable_step"] == 4


@pytest.mark.slow
def test_status_of_a_finished_training_is_at_no_risk(tool: Tool, nobody: Tool, tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    make_checkpoint(output_dir, 8, content="at-rest", max_steps=8, saved_at=time.time() - 100)
    assert tool.watch_once(output_dir, "at-rest").returncode == 0

    done = nobody("status", output_dir, "--max-age", "10")

    assert done.returncode == 0, done.stdout


def test_status_names_the_watcher_and_what_waits(tool: Tool, nobody: Tool, tmp_path: Path, ended: Ended) -> None:
    output_dir = tmp_path / "out"
    make_checkpoint(output_dir, 4, content="waits")
    words: list[str | Path] = ["watch", output_dir, "--run-id", "waits", "--quiet-period", "0.2"]
    watcher = ended(tool.start(*words, log=tmp_path / "log", WANDB_BASE_URL="http://127.0.0.1:9"))
    wait_for(lambda: list((output_dir / ".ckptsync").glob("spool/checkpoint-4.*")), what="a pinned snapshot")

    report = nobody.json("status", output_dir)

    assert f"pid {watcher.pid}" in report["watcher"]
    assert report["pending"] == 1
    assert report["pending_names"][0].startswith("checkpoint-4.")
    assert report["last_durable_step"] is None


def test_status_of_several_folders_is_a_list(nobody: Tool, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()

    reports = nobody.json("status", tmp_path / "a", tmp_path / "b")

    assert [report["output_dir"] for report in reports] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_verify_of_a_whole_checkpoint(nobody: Tool, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "out", 4)

    report = nobody.json("verify", made)
    words = nobody("verify", made)

    assert report["complete"] is True
    assert report["resumable"] is True
    assert (report["layout"], report["step"], report["world_size"], report["files"]) == ("plain", 4, 1, 7)
    assert report["bytes"] == sum(path.stat().st_size for path in made.iterdir())
    assert (report["problems"], report["notes"]) == ([], [])
    assert words.returncode == 0
    assert "complete, resumable, layout plain" in words.stdout


def test_verify_tells_every_reason_and_exits_with_5(nobody: Tool, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "out", 4, without=["scheduler.pt"])
    (made / "optimizer.pt").write_bytes(torch_bytes({"state": {}})[:-30])

    words = nobody("verify", made)
    report = nobody("verify", made, "--json")

    assert (words.returncode, report.returncode) == (5, 5)
    assert "is incomplete" in refusal(words)
    assert "scheduler.pt: missing" in words.stdout
    assert "optimizer.pt" in words.stdout
    found = json.loads(report.stdout)
    assert found["complete"] is found["resumable"] is False
    assert {problem["file"] for problem in found["problems"]} == {"scheduler.pt", "optimizer.pt"}


def test_verify_of_weights_alone_says_that_nothing_resumes_from_them(nobody: Tool, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "out", 4, without=["optimizer.pt", "scheduler.pt", "rng_state.pth"])

    done = nobody("verify", made)

    assert done.returncode == 0
    assert "note: not exactly resumable" in done.stdout
    assert "complete, not resumable, layout weights-only" in done.stdout


def test_verify_knows_how_many_ranks_there_have_to_be(nobody: Tool, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "out", 4, world_size=2)

    two, three = nobody("verify", made, "--world-size", "2"), nobody("verify", made, "--world-size", "3")

    assert (two.returncode, three.returncode) == (0, 5)
    assert "rng_state_2.pth" in three.stdout


def test_verify_reads_every_byte_that_a_checksum_covers(nobody: Tool, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "out", 4, size=5000)
    content = bytearray((made / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (made / "optimizer.pt").write_bytes(content)

    done = nobody("verify", made)

    assert done.returncode == 5
    assert "optimizer.pt" in refusal(done)


def test_verify_of_something_else_is_refused(nobody: Tool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    for path in (tmp_path / "file", tmp_path / "none"):
        done = nobody("verify", path)

        assert done.returncode == 2
        assert "is not a folder" in refusal(done)


def test_verify_leaves_the_folder_as_it_was(nobody: Tool, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "out", 4, saved_at=1_700_000_000)
    before = made.stat().st_mtime_ns

    nobody("verify", made)

    assert made.stat().st_mtime_ns == before
    assert not (tmp_path / "out" / ".ckptsync").exists()


def test_an_alarm_on_a_folder_without_a_training_is_an_error(nobody: Tool, tmp_path: Path) -> None:
    done = nobody("status", tmp_path, "--max-age", "1s")

    assert done.returncode == 2
    assert "neither checkpoints nor a run.json" in refusal(done)
