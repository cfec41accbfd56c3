"""The watcher as a user runs it, with everything that can happen to a folder, a network and a process meanwhile."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptsync.trainer import marker
from ckptsync.upload.spool import Spool
from tests.checkpoints import make_checkpoint
from tests.integration.conftest import (
    Ended,
    Tool,
    contents,
    descendants,
    events,
    kept,
    kill_tree,
    make_run,
    wait_for,
    wait_for_event,
)
from tests.server_process import ServerProcess

Watching = Callable[..., subprocess.Popen[bytes]]

QUIET = ("--quiet-period", "0.2")


def slow_put(seconds: float, count: int = 1) -> dict[str, Any]:
    """The server takes so long to accept a file."""
    return {"match": {"method": "PUT", "path": "/storage/content"}, "count": count, "action": {"delay": seconds}}


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "watch.log"


@pytest.fixture
def watching(tool: Tool, output_dir: Path, log: Path, ended: Ended) -> Watching:
    """Starts a watcher on the output folder."""

    def start(run_id: str, *words: str) -> subprocess.Popen[bytes]:
        return ended(tool.start("watch", output_dir, "--run-id", run_id, *QUIET, *words, log=log))

    return start


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that the test may stop and kill."""
    server = ServerProcess(tmp_path / "own" / "data")
    server.data_dir.mkdir(parents=True)
    server.start()
    yield server
    with contextlib.suppress(ProcessLookupError):
        server.stop()


def receipts(output_dir: Path, count: int = 1) -> list[int]:
    """The steps that are durable, once there are so many."""
    found = wait_for(lambda: (all_ := list(Spool(output_dir).receipts)) and len(all_) >= count and all_, what="receipts")
    return sorted(receipt.step for receipt in found)


def stopped(process: subprocess.Popen[bytes]) -> int:
    """The exit code after a SIGTERM."""
    process.terminate()
    return process.wait(30)


def test_a_sigterm_in_the_middle_of_an_upload_finishes_it(server: ServerProcess, output_dir: Path, watching: Watching) -> None:
    make_checkpoint(output_dir, 4, content="sigterm")
    server.faults([slow_put(2.0)])
    watcher = watching("sigterm")
    wait_for(lambda: any(server.fault_hits()), what="an upload under way")

    code = stopped(watcher)

    assert code == 0
    assert receipts(output_dir) == [4]
    assert kept(server, "sigterm") == [(4, ["latest", "step-4"])]
    assert not Spool(output_dir).pending()


@pytest.mark.parametrize(("state", "code"), [("incomplete", 5), ("still being written", 1)])
def test_a_sigterm_says_what_is_not_durable_of_the_last_save(
    output_dir: Path, watching: Watching, log: Path, ended: Ended, state: str, code: int
) -> None:
    make_checkpoint(output_dir, 4, content=f"sigterm {state}")
    last = make_checkpoint(output_dir, 8, content=f"sigterm {state}")
    if state == "incomplete":
        (last / "model.safetensors").unlink()
    else:
        growing = last / "log.txt"
        ended(subprocess.Popen(["sh", "-c", f"while :; do echo >> {growing}; sleep 0.05; done"]))
        wait_for(growing.exists, what="a file that grows")
    watcher = watching("sigterm-last")
    wait_for(lambda: receipts(output_dir) == [4], what="the receipt of step 4")

    assert stopped(watcher) == code
    assert f"checkpoint-8 is not durable: {'it was ' if code == 1 else ''}{state}" in log.read_text()


@pytest.mark.slow
def test_a_save_that_rests_later_than_the_next_one_is_pinned_is_no_restart(
    tool: Tool, server: ServerProcess, output_dir: Path
) -> None:
    make_checkpoint(output_dir, 4, content="overtaken")
    first = tool.watch_once(output_dir, "overtaken")
    for step in (8, 12):
        make_checkpoint(output_dir, step, content="overtaken")
        marker.write(output_dir, step, world_size=1)
    # The marker of step 8 no longer names its files, so that step 12 is pinned first.
    (output_dir / "checkpoint-8" / "eval_results.json").write_text("{}")

    done = tool("watch", output_dir, "--run-id", "overtaken", "--once", "--quiet-period", "1")

    assert (first.returncode, done.returncode) == (0, 0), done.stderr
    assert [step for step, _ in kept(server, "overtaken")] == [4, 12]


@pytest.mark.slow
def test_a_sigterm_with_a_backlog_of_all_leaves_the_rest_for_the_next_start(
    tool: Tool, server: ServerProcess, output_dir: Path, watching: Watching, log: Path
) -> None:
    server.faults([slow_put(3.0)])
    watcher = watching("leaves", "--backlog", "all")
    for step in (4, 8, 12):
        make_checkpoint(output_dir, step, content="leaves")
        wait_for_event(output_dir, "pinned", step)

    code = stopped(watcher)
    left = [each.step for each in Spool(output_dir).pending()]
    again = tool.watch_once(output_dir, "leaves")

    assert (code, again.returncode) == (1, 0)
    assert "stopped with 2 not durable: checkpoint-8, checkpoint-12" in log.read_text()
    assert left == [8, 12]
    assert [step for step, _ in kept(server, "leaves")] == [4, 8, 12]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_that_announces_a_preemption_does_not_end_the_watcher(
    server: ServerProcess, output_dir: Path, watching: Watching, number: signal.Signals
) -> None:
    run_id = number.name.lower()
    make_checkpoint(output_dir, 4, content=run_id)
    watcher = watching(run_id)
    receipts(output_dir)

    watcher.send_signal(number)
    wait_for(lambda: '"notice"' in (output_dir / ".ckptsync/history.jsonl").read_text(), what="the notice")
    make_checkpoint(output_dir, 8, content=run_id)
    receipts(output_dir, 2)

    assert stopped(watcher) == 75
    assert [step for step, _ in kept(server, run_id)] == [4, 8]


@pytest.mark.parametrize("words", [("watch", "out", "--once"), ("push", "out/checkpoint-4")], ids=["watch --once", "push"])
def test_a_command_that_ends_by_itself_goes_on_at_a_signal_that_announces_the_end(
    tool: Tool, server: ServerProcess, output_dir: Path, log: Path, ended: Ended, words: tuple[str, ...]
) -> None:
    server.faults([slow_put(1.0)])
    run_id = f"{words[0]}-announced"
    folder = make_checkpoint(output_dir, 4, content=run_id).parent.parent / words[1]
    process = ended(tool.start(words[0], folder, *words[2:], "--run-id", run_id, log=log))
    wait_for(lambda: any(server.fault_hits()), what="an upload under way")

    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGUSR2)

    assert process.wait(60) == 0, log.read_text()
    assert [step for step, _ in kept(server, run_id)] == [4]
    assert "SIGUSR2 announces the end: going on" in log.read_text()


def test_a_second_sigterm_quits_at_once_and_the_snapshot_stays_in_the_queue(
    server: ServerProcess, output_dir: Path, watching: Watching
) -> None:
    make_checkpoint(output_dir, 4, content="second")
    server.faults([slow_put(60.0)])
    watcher = watching("second")
    wait_for(lambda: any(server.fault_hits()), what="an upload under way")
    below = descendants(watcher.pid)
    watcher.terminate()
    time.sleep(0.5)
    still_uploading = watcher.poll() is None
    began = time.monotonic()

    code = stopped(watcher)

    assert still_uploading
    assert code == 128 + signal.SIGTERM
    assert time.monotonic() - began < 5
    assert [each.step for each in Spool(output_dir).pending()] == [4]
    assert kept(server, "second") == []
    wait_for(lambda: not [pid for pid in below if Path(f"/proc/{pid}").exists()], what="the end of the upload process")


def test_a_watcher_of_a_process_ends_after_it_when_its_last_checkpoint_is_durable(
    server: ServerProcess, output_dir: Path, watching: Watching, ended: Ended
) -> None:
    trainer = ended(subprocess.Popen(["sleep", "600"]))
    watcher = watching("pid", "--pid", str(trainer.pid))
    make_checkpoint(output_dir, 4, content="pid")
    receipts(output_dir)
    watches_on = watcher.poll() is None
    make_checkpoint(output_dir, 8, content="pid")

    kill_tree(trainer.pid)
    trainer.wait()
    code = watcher.wait(30)

    assert watches_on
    assert code == 0
    assert [step for step, _ in kept(server, "pid")] == [4, 8]


@pytest.mark.slow
@pytest.mark.parametrize("backlog", ["newest", "all"])
def test_what_waits_behind_a_slow_upload_goes_as_the_backlog_says(
    server: ServerProcess, output_dir: Path, watching: Watching, backlog: str
) -> None:
    run_id = f"backlog-{backlog}"
    server.faults([slow_put(4.0)])
    watcher = watching(run_id, "--backlog", backlog)
    for step in (4, 8, 12, 16):
        make_checkpoint(output_dir, step, content=run_id)
        wait_for_event(output_dir, "pinned", step)
        wait_for(lambda: any(server.fault_hits()), what="an upload under way")
    wait_for_event(output_dir, "uploaded", 16)

    code = stopped(watcher)

    expected = [4, 8, 12, 16] if backlog == "all" else [4, 16]
    assert code == 0
    assert [step for step, _ in kept(server, run_id)] == expected
    assert kept(server, run_id)[-1] == (16, ["latest", "step-16"])
    assert events(output_dir, "uploaded") == [("uploaded", step) for step in expected]
    assert events(output_dir, "superseded") == [("superseded", step) for step in (4, 8, 12, 16) if step not in expected]


@pytest.mark.slow
def test_rotation_in_the_middle_of_an_upload_loses_nothing_that_was_pinned(
    tool: Tool, server: ServerProcess, output_dir: Path, tmp_path: Path, watching: Watching
) -> None:
    make_run(server, "rotated")
    made = make_checkpoint(output_dir, 4, content="rotated", size=200_000)
    shutil.copytree(made, tmp_path / "before")
    server.faults([slow_put(1.5)])
    watcher = watching("rotated")
    wait_for(lambda: any(server.fault_hits()), what="an upload under way")

    shutil.rmtree(made)
    durable = receipts(output_dir)

    assert stopped(watcher) == 0
    assert durable == [4]
    assert tool.pulled("rotated", tmp_path / "new") == contents(tmp_path / "before")


def test_a_torn_checkpoint_never_becomes_a_version_and_its_reason_is_told_once(
    server: ServerProcess, output_dir: Path, log: Path, watching: Watching
) -> None:
    make_checkpoint(output_dir, 1, content="torn", without=["trainer_state.json"])
    make_checkpoint(output_dir, 2, content="torn", without=["rng_state.pth"])
    make_checkpoint(output_dir, 3, content="torn", without=["model.safetensors"])
    with (make_checkpoint(output_dir, 4, content="torn") / "model.safetensors").open("r+b") as weights:
        weights.truncate(100)
    with (make_checkpoint(output_dir, 5, content="torn") / "optimizer.pt").open("r+b") as optimizer:
        optimizer.truncate(200)
    (make_checkpoint(output_dir, 6, content="torn") / "trainer_state.json").write_text('{"global_step": 6, "max')
    shutil.copytree(make_checkpoint(output_dir, 9, content="torn"), output_dir / "checkpoint-7")
    shutil.rmtree(output_dir / "checkpoint-9")
    watcher = watching("torn", "--backlog", "all")
    wait_for(lambda: len(events(output_dir, "incomplete")) >= 7, what="seven reasons")

    make_checkpoint(output_dir, 10, content="torn")
    receipts(output_dir)
    time.sleep(1.5)

    assert stopped(watcher) == 0
    assert [step for step, _ in kept(server, "torn")] == [10]
    assert sorted(events(output_dir, "incomplete")) == [("incomplete", step) for step in range(1, 8)]
    told = [line for line in log.read_text().splitlines() if "incomplete: " in line]
    assert len(told) == 7
    assert any("skipping checkpoint-2: incomplete: rng_state.pth: missing" in line for line in told)


@pytest.mark.parametrize("deed", ["rename", "delete"])
def test_an_output_folder_that_is_gone_is_told_and_an_error_that_names_nothing_durable(
    server: ServerProcess, output_dir: Path, log: Path, watching: Watching, deed: str
) -> None:
    make_checkpoint(output_dir, 4, content=deed)
    watcher = watching(f"gone-{deed}")
    wait_for(lambda: "uploaded checkpoint-4" in log.read_text(), what="the upload")

    if deed == "rename":
        output_dir.rename(output_dir.with_name("elsewhere"))
        make_checkpoint(output_dir.with_name("elsewhere"), 8, content=deed)
    else:
        shutil.rmtree(output_dir)
    wait_for(lambda: "is gone: nothing is uploaded until it is back" in log.read_text(), what="the warning")

    assert stopped(watcher) == 1
    said = log.read_text()
    assert said.count("is gone: nothing") == 1
    assert "is gone: what was saved in it after the last scan is not durable" in said.splitlines()[-1]
    assert "checkpoint-4 not durable" not in said
    assert not output_dir.exists()


@pytest.mark.slow
def test_a_checkpoint_that_becomes_whole_late_is_uploaded(server: ServerProcess, output_dir: Path, watching: Watching) -> None:
    folder = make_checkpoint(output_dir, 4, content="late", without=["trainer_state.json"])
    watcher = watching("late")
    wait_for(lambda: events(output_dir, "incomplete"), what="the reason")

    make_checkpoint(output_dir, 4, content="late")

    assert receipts(output_dir) == [4]
    assert stopped(watcher) == 0
    assert folder.is_dir()


@pytest.mark.slow
def test_a_save_of_the_same_step_in_the_middle_of_an_upload_ends_with_the_new_bytes(
    tool: Tool, server: ServerProcess, output_dir: Path, tmp_path: Path, watching: Watching
) -> None:
    make_run(server, "same-step")
    make_checkpoint(output_dir, 4, content="same-step, first", size=200_000)
    server.faults([slow_put(2.0)])
    watcher = watching("same-step")
    wait_for(lambda: any(server.fault_hits()), what="an upload under way")

    made = make_checkpoint(output_dir, 4, content="same-step, again", size=200_000)
    receipts(output_dir)

    assert stopped(watcher) == 0
    assert [step for step, _ in kept(server, "same-step")] == [4]
    assert tool.pulled("same-step", tmp_path / "new") == contents(made)
    assert not Spool(output_dir).pending()


@pytest.mark.slow
def test_a_checkpoint_that_is_saved_again_after_it_was_durable_becomes_another_version(
    server: ServerProcess, output_dir: Path, watching: Watching
) -> None:
    make_checkpoint(output_dir, 4, content="again, first")
    watcher = watching("again")
    receipts(output_dir)

    make_checkpoint(output_dir, 4, content="again, second")
    durable = receipts(output_dir, 2)

    assert stopped(watcher) == 0
    assert durable == [4, 4]
    assert kept(server, "again") == [(4, []), (4, ["latest", "step-4"])]


@pytest.mark.slow
def test_a_watcher_that_starts_again_uploads_nothing_twice(tool: Tool, server: ServerProcess, output_dir: Path) -> None:
    for step in (4, 8):
        make_checkpoint(output_dir, step, content="twice", saved_at=time.time() - 100 + step)
    first = tool.watch_once(output_dir, "twice")
    before = len(server.requests())

    second = tool.watch_once(output_dir, "twice")

    assert (first.returncode, second.returncode) == (0, 0)
    assert [step for step, _ in kept(server, "twice")] == [4, 8]
    assert not [each for each in server.requests()[before:] if each["operation"] == "CreateArtifact" or each["method"] == "PUT"]


def test_a_training_that_starts_over_uploads_nothing_unless_that_is_allowed(
    tool: Tool, server: ServerProcess, output_dir: Path
) -> None:
    make_checkpoint(output_dir, 8, content="over, first", saved_at=time.time() - 100)
    assert tool.watch_once(output_dir, "over").returncode == 0
    make_checkpoint(output_dir, 4, content="over, again")

    refused = tool.watch_once(output_dir, "over")
    kept_then = [step for step, _ in kept(server, "over")]
    allowed = tool.watch_once(output_dir, "over", "--allow-restart")

    assert refused.returncode == 5
    assert "checkpoint-4 is not above step 8" in refused.stderr
    assert "--allow-restart" in refused.stderr
    assert kept_then == [8]
    assert allowed.returncode == 0, allowed.stderr
    assert [step for step, _ in kept(server, "over")] == [8, 4]


def warnings(log: Path) -> list[str]:
    return [line.partition(" WARNING ")[2] for line in log.read_text().splitlines() if " WARNING " in line]


@pytest.mark.slow
def test_a_server_that_is_away_at_the_start_is_waited_for(
    tmp_path: Path, own_server: ServerProcess, output_dir: Path, log: Path, ended: Ended
) -> None:
    tool = Tool(tmp_path / "home", own_server)
    own_server.stop()
    watcher = ended(tool.start("watch", output_dir, "--run-id", "away", *QUIET, log=log))
    make_checkpoint(output_dir, 4)
    wait_for(lambda: "retrying" in log.read_text(), what="a failed attempt")
    time.sleep(2.0)

    own_server.start()
    durable = receipts(output_dir)

    assert stopped(watcher) == 0
    assert durable == [4]
    assert [step for step, _ in kept(own_server, "away")] == [4]
    told = [line for line in warnings(log) if "not on the server yet" not in line]
    assert len(told) == 3, told
    assert "watching anyway" in told[0]
    assert "failed, retrying" in told[1]
    assert "succeeded after" in told[2]


@pytest.mark.slow
def test_a_server_killed_in_the_middle_of_an_upload_ends_with_one_version(
    tmp_path: Path, own_server: ServerProcess, output_dir: Path, log: Path, ended: Ended
) -> None:
    tool = Tool(tmp_path / "home", own_server)
    make_checkpoint(output_dir, 4, size=200_000)
    own_server.faults([slow_put(60.0)])
    watcher = ended(tool.start("watch", output_dir, "--run-id", "killed", *QUIET, log=log))
    wait_for(lambda: any(own_server.fault_hits()), what="an upload under way")

    own_server.kill()
    wait_for(lambda: "retrying" in log.read_text(), what="a failed attempt")
    own_server.start()
    durable = receipts(output_dir)

    assert stopped(watcher) == 0
    assert durable == [4]
    assert kept(own_server, "killed") == [(4, ["latest", "step-4"])]


def test_a_commit_whose_answer_was_lost_is_found_again_and_not_doubled(
    tool: Tool, server: ServerProcess, output_dir: Path
) -> None:
    make_checkpoint(output_dir, 4, content="lost-answer")
    server.faults([{"match": {"operation": "CommitArtifact"}, "count": 1, "action": {"drop": "after"}}])

    done = tool.watch_once(output_dir, "lost-answer")

    assert done.returncode == 0, done.stderr
    assert server.fault_hits() == [1]
    assert receipts(output_dir) == [4]
    assert kept(server, "lost-answer") == [(4, ["latest", "step-4"])]


@pytest.mark.slow
def test_a_permanent_error_parks_a_checkpoint_and_the_next_start_tries_it_again(
    tool: Tool, server: ServerProcess, output_dir: Path, watching: Watching
) -> None:
    quota = {
        "match": {"operation": "CreateArtifact"},
        "count": 1,
        "action": {"graphql_errors": "injected: storage quota exceeded"},
    }
    server.faults([quota])
    watcher = watching("quota", "--backlog", "all")
    make_checkpoint(output_dir, 4, content="quota")
    wait_for(lambda: Spool(output_dir).parked(), what="a parked snapshot")
    make_checkpoint(output_dir, 8, content="quota")
    durable = receipts(output_dir)
    code = stopped(watcher)
    status = tool.json("status", output_dir)
    kept_then = [step for step, _ in kept(server, "quota")]

    again = tool.watch_once(output_dir, "quota")

    assert durable == [8]
    assert code == 1, "something is not durable"
    assert kept_then == [8]
    assert status["parked"] == 1
    assert "storage quota exceeded" in next(iter(status["parked_reasons"].values()))
    assert again.returncode == 0, again.stderr
    assert not Spool(output_dir).parked()
    assert kept(server, "quota") == [(8, ["latest", "step-8"]), (4, ["step-4"])]


def test_what_stays_parked_is_the_outcome_of_a_single_pass(tool: Tool, server: ServerProcess, output_dir: Path) -> None:
    make_checkpoint(output_dir, 4, content="parked", saved_at=time.time() - 100)
    make_checkpoint(output_dir, 8, content="parked")
    quota = {
        "match": {"operation": "CreateArtifact"},
        "count": 1,
        "action": {"graphql_errors": "injected: storage quota exceeded"},
    }
    server.faults([quota])

    done = tool.watch_once(output_dir, "parked")

    assert done.returncode == 1
    assert "storage quota exceeded" in done.stderr
    assert [step for step, _ in kept(server, "parked")] == [8]


@pytest.mark.slow
def test_an_upload_that_stalls_is_ended_and_tried_again(
    server: ServerProcess, output_dir: Path, log: Path, watching: Watching
) -> None:
    make_checkpoint(output_dir, 4, content="stalled")
    server.faults([slow_put(600.0)])

    watcher = watching("stalled", "--stall-timeout", "3")
    durable = receipts(output_dir)

    assert stopped(watcher) == 0
    assert durable == [4]
    assert "made no progress for 3 s" in log.read_text()
    assert kept(server, "stalled") == [(4, ["latest", "step-4"])]


@pytest.mark.slow
def test_a_single_pass_that_is_stopped_says_what_is_not_durable(
    server: ServerProcess, output_dir: Path, watching: Watching, log: Path
) -> None:
    for step in (4, 8):
        make_checkpoint(output_dir, step, content="cut", saved_at=time.time() - 100 + step)
    server.faults([slow_put(3.0)])
    watcher = watching("cut", "--once")
    wait_for(lambda: any(server.fault_hits()), what="the first upload")

    assert stopped(watcher) == 1
    assert receipts(output_dir) == [4]
    assert "stopped with 1 not durable: checkpoint-8." in log.read_text()


def test_a_single_pass_uploads_beside_what_goes_on_changing_and_then_names_it(tool: Tool, output_dir: Path, ended: Ended) -> None:
    make_checkpoint(output_dir, 4, content="growing")
    growing = make_checkpoint(output_dir, 8, content="growing") / "log.txt"
    ended(subprocess.Popen(["sh", "-c", f"while :; do echo >> {growing}; sleep 0.05; done"]))
    wait_for(growing.exists, what="a file that grows")

    done = tool("watch", output_dir, "--run-id", "growing", "--once", "--quiet-period", "0.5")

    assert done.returncode == 1, done.stderr
    assert receipts(output_dir) == [4]
    assert "checkpoint-8 is not durable: it was still being written" in done.stderr


def test_an_incomplete_save_is_said_to_be_the_only_one_where_no_other_is_durable(tool: Tool, output_dir: Path) -> None:
    (make_checkpoint(output_dir, 4) / "model.safetensors").unlink()

    done = tool.watch_once(output_dir, "alone")

    assert done.returncode == 5, done.stderr
    assert "No checkpoint before it is durable." in done.stderr


@pytest.mark.parametrize("run_id", ["bert-500", "lr-401"])
def test_a_run_id_that_looks_like_an_error_is_a_name_like_any_other(
    tool: Tool, server: ServerProcess, output_dir: Path, run_id: str
) -> None:
    make_checkpoint(output_dir, 4, content=run_id)

    done = tool.watch_once(output_dir, run_id)

    assert done.returncode == 0, done.stderr
    assert kept(server, run_id) == [(4, ["latest", "step-4"])]


def test_a_single_pass_that_is_stopped_before_its_first_look_says_so(output_dir: Path, watching: Watching, log: Path) -> None:
    make_checkpoint(output_dir, 4, content="early")
    watcher = watching("early", "--once", "--quiet-period", "60s")
    wait_for(lambda: "watching" in log.read_text(), what="the log-in")

    assert stopped(watcher) == 1
    assert "stopped before all checkpoints were examined" in log.read_text()


def test_uploads_keep_within_the_rate_that_was_asked_for(tool: Tool, server: ServerProcess, output_dir: Path) -> None:
    make_checkpoint(output_dir, 4, content="limited", size=2_000_000, saved_at=time.time() - 100)

    done = tool.watch_once(output_dir, "limited", "--max-upload-rate", "2M/s")

    assert done.returncode == 0, done.stderr
    receipt = next(iter(Spool(output_dir).receipts))
    assert receipt.bytes > 4_000_000
    assert receipt.seconds > 1.8, "four megabytes at two of them a second"
    assert kept(server, "limited") == [(4, ["latest", "step-4"])]
