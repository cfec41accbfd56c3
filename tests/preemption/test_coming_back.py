"""How the same line brings a job back: after failures, after kill -9 of any part, and when the store is away."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ckptsync.job.training import ranks
from tests.integration.conftest import descendants, kill_tree, wait_for
from tests.preemption.conftest import Job, until_gone
from tests.server_process import ServerProcess


@pytest.mark.slow
def test_a_training_that_fails_in_the_first_step_three_times_stops_with_its_own_code_and_a_sentence(job: Job) -> None:
    job.options += ["--max-restarts", "10"]
    job.command = job.saver("--fail-at", 1)

    code = job.run()

    assert code == 7
    assert job.starts == [0, 0, 0]
    assert "the training failed with 7, 3 times in a row without a checkpoint above step 0: a crash loop" in job.said


@pytest.mark.slow
def test_without_restarts_a_failure_ends_with_its_own_code_and_the_same_line_goes_on(job: Job) -> None:
    job.command = job.saver("--fail-at", 6, "--fail-once")

    assert job.run() == 7
    assert "the training failed with 7 after step 4" in job.said
    assert job.run() == 0, job.said
    assert job.starts == [0, 4]


@pytest.mark.slow
def test_a_failure_is_followed_by_a_restart_from_the_newest_checkpoint_that_waits_for_no_upload(
    job: Job, server: ServerProcess
) -> None:
    job.options += ["--max-restarts", "2", "--retry-for", "1s"]
    job.command = job.saver("--fail-at", 6, "--fail-once", "--seconds", 0.2)
    process = job.start()
    job.wait_for_step(1)
    server.faults([{"match": {"path": "/graphql"}, "action": {"status": 503}}])

    wait_for(lambda: 12 in job.steps, what="the end of the training while the store is away")
    durable = job.durable()
    server.faults([])

    assert process.wait(60) == 0, job.said
    assert job.starts == [0, 4]
    assert "restart 1 of 2 from step 4 in 1 s" in job.said
    assert "resuming from the local" in job.said
    assert durable < 12 == job.versions()[0]["step"]


@pytest.mark.slow
def test_a_finished_training_is_never_started_again_and_what_was_left_over_is_uploaded(job: Job, server: ServerProcess) -> None:
    job.command = job.saver("--save", 6)
    process = job.start()
    job.wait_for_step(12)
    wait_for(lambda: [each.step for each in job.spool.pending()], what="a pinned checkpoint")
    kill_tree(process.pid)
    process.wait(30)

    first, second = job.run(), job.run()

    assert (first, second) == (0, 0), job.said
    assert job.starts == [0]
    assert job.said.count("the training is finished") == 2
    assert job.versions()[0]["step"] == 12
    assert not job.spool.pending()


@pytest.mark.slow
def test_kill_9_of_the_training_alone_ends_with_its_code_and_the_same_line_repeats_few_steps(job: Job) -> None:
    job.command = job.saver("--seconds", 0.2, "--steps", 40)
    process = job.start()
    job.wait_for_durable(4)

    os.kill(ranks(job.output_dir)[0], signal.SIGKILL)

    assert process.wait(60) == 128 + signal.SIGKILL, job.said
    durable = job.durable()
    assert job.run(SAVER_SECONDS="0") == 0, job.said
    assert job.starts == [0, durable]
    assert_only_repeated_above(durable, job)


def test_kill_9_of_ckptsync_alone_lets_the_training_go_on_and_the_same_line_follows_it(job: Job) -> None:
    job.command = job.saver("--seconds", 0.2, "--steps", 80)
    process = job.start()
    job.wait_for_durable(4)
    trainer = ranks(job.output_dir)[0]

    for pid in [process.pid, *(pid for pid in descendants(process.pid) if pid != trainer)]:
        os.kill(pid, signal.SIGKILL)
    process.wait(30)
    code = job.run()

    assert code == 0, job.said
    assert f"the training is still running (pid {trainer})" in job.said
    assert job.starts == [0]
    assert Counter(job.steps) == Counter(range(1, 81))
    assert job.versions()[0]["step"] == 80


@pytest.mark.slow
def test_a_training_that_was_found_running_is_preempted_like_any_other(job: Job) -> None:
    job.command = job.saver("--seconds", 0.2, "--steps", 100)
    process = job.start()
    job.wait_for_durable(4)
    trainer = ranks(job.output_dir)[0]
    for pid in [process.pid, *(pid for pid in descendants(process.pid) if pid != trainer)]:
        os.kill(pid, signal.SIGKILL)
    process.wait(30)
    again = job.start()
    wait_for(lambda: "still running" in job.said, what="the second start")
    refused = job.tool("resume", "job", "--output-dir", job.output_dir, "--", "true")

    again.send_signal(signal.SIGTERM)

    assert again.wait(60) == 75, job.said
    assert job.durable() == job.steps[-1]
    until_gone(trainer)
    assert refused.returncode == 7, refused.stderr
    assert "a training is running" in refused.stderr


@pytest.mark.slow
def test_kill_9_of_both_and_the_same_line_repeats_no_more_than_the_steps_since_the_last_durable_checkpoint(job: Job) -> None:
    job.command = job.saver("--seconds", 0.2, "--steps", 40)
    process = job.start()
    job.wait_for_durable(4)

    kill_tree(process.pid)
    process.wait(30)
    durable = job.durable()

    assert job.run(SAVER_SECONDS="0") == 0, job.said
    assert job.starts[1] >= durable
    assert_only_repeated_above(durable, job)


def assert_only_repeated_above(durable: int, job: Job) -> None:
    counted = Counter(job.steps)
    assert set(counted) == set(range(1, max(counted) + 1))
    assert all(times == 1 for step, times in counted.items() if step <= durable)


@pytest.mark.slow
def test_a_store_that_is_away_does_not_keep_a_training_from_going_on_from_what_is_here(job: Job, server: ServerProcess) -> None:
    job.options += ["--retry-for", "1s"]
    job.command = job.saver("--fail-at", 6, "--fail-once")
    assert job.run() == 7
    server.faults([{"match": {"path": "/graphql"}, "action": {"status": 503}}])
    process = job.start()

    wait_for(lambda: 12 in job.steps, what="the end of the training")
    server.faults([])

    assert process.wait(60) == 0, job.said
    assert job.starts == [0, 4]
    assert "the store may have a newer checkpoint" in job.said


@pytest.mark.slow
def test_a_network_that_comes_up_late_is_waited_for_where_only_the_store_may_have_a_checkpoint(
    job: Job, server: ServerProcess
) -> None:
    job.command = job.saver()
    server.faults([{"match": {"path": "/graphql"}, "action": {"status": 503}}])
    process = job.start()
    wait_for(lambda: "retrying" in job.said, what="the first attempt")
    time.sleep(1)
    assert job.notes == []

    server.faults([])

    assert process.wait(60) == 0, job.said
    assert "succeeded after" in job.said
    assert job.starts == [0]


def test_without_any_checkpoint_a_store_that_stays_away_ends_with_6_and_starts_nothing(job: Job, server: ServerProcess) -> None:
    job.options += ["--retry-for", "1s"]
    job.command = job.saver()
    server.faults([{"match": {"path": "/graphql"}, "action": {"status": 503}}])

    assert job.run() == 6, job.said
    assert job.notes == []


@pytest.mark.slow
def test_what_a_training_saves_that_ignores_its_checkpoint_is_neither_uploaded_nor_resumed_from(job: Job) -> None:
    job.command = job.saver("--fail-at", 6, "--fail-once")
    assert job.run() == 7
    wait_for(lambda: job.durable() == 4, what="step 4")
    good, job.command = job.command, job.saver("--deaf", "--save", 2, "--steps", 8)

    assert job.run() == 5, job.said
    assert "so the training started over; nothing of it is uploaded" in job.said
    assert [row["step"] for row in job.versions()] == [4]
    job.command = good
    assert job.run() == 0, job.said
    assert job.starts == [0, 0, 4]
    assert job.versions()[0]["step"] == 12


def test_a_training_that_ends_by_itself_before_its_last_step_is_not_started_again(job: Job) -> None:
    job.options += ["--max-restarts", "5"]
    job.command = [sys.executable, "-c", "print('stopped early')"]

    assert job.run() == 0, job.said
    assert job.said.count("stopped early\n") == 1
    assert "not restarting it" in job.said


@pytest.mark.slow
def test_the_replay_window_is_told_at_the_resume(job: Job, tmp_path: Path) -> None:
    log = 'import wandb\nwith wandb.init() as run:\n    for step in range(1, 11): run.log({"train/global_step": step})'
    logged = {"WANDB_RUN_ID": "job", "WANDB_MODE": "online"}
    subprocess.run([sys.executable, "-c", log], env=job.tool.environment | logged, cwd=tmp_path, check=True, timeout=60)
    job.command = job.saver("--fail-at", 6, "--fail-once")
    assert job.run() == 7

    assert job.run() == 0

    assert "steps 5 to 10 will be logged again: the run had reached step 10" in job.said


@pytest.mark.slow
def test_rows_of_a_programs_own_that_may_come_again_are_told_at_the_resume(job: Job, tmp_path: Path) -> None:
    job.command = job.saver("--fail-at", 6, "--fail-once")
    assert job.run() == 7
    log = 'import wandb\nwith wandb.init() as run:\n    for step in range(1, 11): run.log({"mine": step})'
    logged = {"WANDB_RUN_ID": "job", "WANDB_MODE": "online"}
    subprocess.run([sys.executable, "-c", log], env=job.tool.environment | logged, cwd=tmp_path, check=True, timeout=60)

    assert job.run() == 0

    assert re.search(r"rows that the program logged up to \d+ s after step 4 may be logged again", job.said)


@pytest.mark.parametrize("option", ["--max-restarts", "--grace", "--notice", "--retry-for"])
def test_a_wrong_value_is_told_in_one_line(job: Job, option: str) -> None:
    job.command = ["true"]
    job.options = [option, "nonsense"]

    assert job.run() == 2
    assert option in job.said
    assert "Traceback" not in job.said
