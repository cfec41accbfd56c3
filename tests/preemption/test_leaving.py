"""What `run` does around a training when the machine goes away, with a training that costs nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.checkpoints import make_checkpoint
from tests.integration.conftest import kill_tree, wait_for
from tests.preemption.conftest import HERE, Job, Notifier
from tests.preemption.metadata import AmazonService, GoogleService
from tests.server_process import ServerProcess

KINDS = ("gce", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("aws", "azure", "SIGTERM", "SIGUSR1", "SIGUSR2")))


@pytest.fixture(params=KINDS)
def notifier(request: pytest.FixtureRequest, job: Job) -> Iterator[Notifier]:
    """One after the other, each way in which a machine says that it goes away."""
    one = Notifier(request.param, job)
    yield one
    one.close()


def test_at_a_notice_the_training_saves_and_the_same_line_goes_on_from_there(job: Job, notifier: Notifier) -> None:
    job.command = job.saver("--seconds", 0.2, "--steps", 60)
    process = job.start()
    job.wait_for_step(5)

    notifier.give(process)
    code = process.wait(60)

    assert code == 75, job.said
    left = job.steps[-1]
    asked = signal.SIGUSR1 if notifier.kind == "SIGUSR1" else signal.SIGTERM
    assert job.notes[-1] == f"signal {asked.value}"
    newest = job.versions()[0]
    assert newest["step"] == left
    assert {"preempted", "latest"} <= set(newest["aliases"])
    assert [event["source"] for event in job.events if event["event"] in ("notice", "preempted")] == [notifier.kind] * 2
    notifier.take_back()
    assert job.run(SAVER_SECONDS="0.02") == 0, job.said
    assert job.starts == [0, left]
    assert Counter(job.steps) == Counter(range(1, 61))
    assert job.versions()[0]["step"] == 60


@pytest.mark.slow
def test_a_rebalance_recommendation_is_logged_and_ends_nothing(job: Job) -> None:
    with AmazonService() as service:
        service.rebalance = True
        job.options, job.variables = ["--notice", "aws"], service.variables
        job.command = job.saver("--steps", 4, "--seconds", 0.3)

        assert job.run() == 0, job.said

    assert "recommends leaving this machine" in job.said
    assert job.steps == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_launcher_that_would_die_of_the_signal_or_start_again_gets_none_until_the_ranks_are_gone(job: Job) -> None:
    job.command = [sys.executable, str(HERE / "launcher.py"), "3", *job.saver("--seconds", 0.2, "--save-seconds", 1.0)]
    process = job.start()
    job.wait_for_step(5)

    process.send_signal(signal.SIGUSR1)
    code = process.wait(60)

    assert code == 75, job.said
    assert job.notes[-1] == f"signal {signal.SIGUSR1.value}"
    assert job.starts[0] == 0
    assert job.versions()[0]["step"] == max(job.steps)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_program_that_saves_at_sigterm_alone_gets_a_sigterm(job: Job, number: signal.Signals) -> None:
    # What a program does at its own SIGUSR2 is no save.
    lines = (
        "import signal, sys, time",
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit('its own signal'))",
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))",
        "print('up', flush=True)",
        "time.sleep(60)",
    )
    job.command = [sys.executable, "-c", "\n".join(lines)]
    process = job.start()
    wait_for(lambda: "\nup" in job.said, what="the program")

    process.send_signal(number)
    process.send_signal(number)

    assert process.wait(60) == 75, job.said
    assert "its own signal" not in job.said


@pytest.mark.slow
def test_an_upload_that_hangs_gives_way_to_the_last_checkpoint(job: Job, server: ServerProcess) -> None:
    job.options += ["--grace", "25s"]
    job.command = job.saver("--seconds", 0.3, "--size", 4_000_000, "--save", 3, "--steps", 40)
    process = job.start()
    job.wait_for_durable(3)
    server.faults([{"match": {"method": "PUT"}, "action": {"delay": 60}, "count": 1}])
    wait_for(lambda: any(server.fault_hits()), what="a slow upload")

    process.send_signal(signal.SIGTERM)
    code = process.wait(60)

    assert code == 75, job.said
    assert "meets the deadline" in job.said
    assert job.versions()[0]["step"] == job.steps[-1], job.said


@pytest.mark.slow
def test_a_store_that_is_away_at_the_notice_is_an_error_and_the_next_start_uploads_first(job: Job, server: ServerProcess) -> None:
    job.options += ["--grace", "1s"]
    job.command = job.saver("--seconds", 0.2, "--steps", 60)
    process = job.start()
    job.wait_for_durable(4)
    server.faults([{"match": {"path": "/graphql"}, "action": {"status": 503}}])

    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    server.faults([])

    assert code == 6, job.said
    left = job.steps[-1]
    assert [each.step for each in job.spool.pending()] == [left]
    assert job.run(SAVER_SECONDS="0.02") == 0, job.said
    assert job.starts == [0, left]
    assert {row["step"] for row in job.versions()} >= {4, 60}


@pytest.mark.slow
def test_a_notice_before_the_first_checkpoint_is_a_preemption_too(job: Job) -> None:
    job.command = job.saver("--seconds", 0.2, "--save", 1000)
    process = job.start()
    job.wait_for_step(1)

    process.send_signal(signal.SIGTERM)

    assert process.wait(60) == 75, job.said
    assert "preempted" in job.versions()[0]["aliases"]


def test_a_notice_while_the_checkpoint_is_still_on_its_way_starts_nothing(job: Job, server: ServerProcess) -> None:
    with GoogleService() as service:
        job.options, job.variables = ["--notice", "gce"], service.variables
        service.announce(30)
        server.faults([{"match": {"path": "/graphql"}, "action": {"delay": 3.0}}])
        job.command = job.saver()

        code = job.run()

    assert code == 75, job.said
    assert job.notes == []


def test_a_notice_before_the_start_is_no_preemption_while_what_is_here_is_not_durable(job: Job, server: ServerProcess) -> None:
    make_checkpoint(job.output_dir, 4, content="left behind")
    with GoogleService() as service:
        job.options, job.variables = ["--notice", "gce"], service.variables
        service.announce(30)
        server.faults([{"match": {"path": "/graphql"}, "action": {"delay": 3.0}}])
        job.command = job.saver()

        code = job.run()

    assert code == 143, job.said
    assert "before the training was started: not everything in this folder is durable" in job.said


def test_sigint_means_that_a_person_wants_the_end(job: Job) -> None:
    job.options += ["--max-restarts", "5"]
    job.command = [sys.executable, "-c", "import time\nprint('up', flush=True)\ntime.sleep(60)"]
    process = job.start()
    wait_for(lambda: "\nup" in job.said, what="the program")

    process.send_signal(signal.SIGINT)

    assert process.wait(60) == 130, job.said
    assert job.said.count("\nup") == 1


@pytest.mark.slow
def test_a_training_that_another_process_signalled_counts_as_preempted(job: Job) -> None:
    job.options += ["--max-restarts", "5"]
    job.command = job.saver("--seconds", 0.2)
    process = job.start()
    job.wait_for_step(5)

    os.kill(_trainer(job), signal.SIGTERM)

    assert process.wait(60) == 75, job.said
    assert job.starts == [0]


@pytest.mark.slow
def test_another_watcher_of_the_folder_does_the_uploads(job: Job) -> None:
    job.output_dir.mkdir()
    watcher = job.tool.start(
        "watch", job.output_dir, "--run-id", "job", "--notice", "none", log=job.output_dir.with_name("w.log")
    )
    try:
        wait_for(lambda: "watching" in job.output_dir.with_name("w.log").read_text(), what="the watcher")
        job.command = job.saver("--seconds", 0.2)
        process = job.start()
        job.wait_for_step(5)

        process.send_signal(signal.SIGTERM)

        assert process.wait(60) == 75, job.said
        assert "already watched" in job.said
        assert job.durable() == job.steps[-1]
    finally:
        kill_tree(watcher.pid)
        watcher.wait(30)


@pytest.mark.slow
def test_a_watcher_beside_a_training_asks_its_ranks_to_save_and_ends_when_all_is_durable(job: Job) -> None:
    job.command = job.saver("--seconds", 0.2, "--steps", 200)
    process = job.start()
    job.wait_for_step(2)
    kill_tree_but_the_trainer(job, process.pid)
    process.wait(30)
    with GoogleService() as service:
        log = job.output_dir.with_name("w.log")
        watcher = job.tool.start("watch", job.output_dir, "--notice", "gce", log=log, **service.variables)
        try:
            job.wait_for_durable(4)

            service.announce(30)

            assert watcher.wait(60) == 75, log.read_text()
        finally:
            if watcher.poll() is None:
                kill_tree(watcher.pid)
                watcher.wait(30)
    assert job.notes[-1] == f"signal {signal.SIGTERM.value}"
    assert "preempted" in job.versions()[0]["aliases"]


@pytest.mark.slow
def test_a_limit_on_uploads_is_lifted_when_the_machine_goes(job: Job) -> None:
    job.options += ["--max-upload-rate", "20K"]
    job.command = job.saver("--seconds", 0.1, "--save", 2, "--steps", 1000, "--size", 10_000_000)
    process = job.start()
    job.wait_for_step(3)

    process.send_signal(signal.SIGTERM)

    assert process.wait(60) == 75, "twenty megabytes take a quarter of an hour at that rate"
    assert job.durable() >= 4


@pytest.mark.slow
def test_an_upload_that_is_longer_than_the_grace_period_is_warned_of_once_with_numbers(job: Job) -> None:
    job.options += ["--grace", "0.01s"]
    job.command = job.saver("--seconds", 0.4, "--save", 2)

    assert job.run() == 0

    assert job.said.count("an upload takes") == 1
    assert "the grace period is" in job.said


def _trainer(job: Job) -> int:
    from ckptsync.job.training import ranks

    return ranks(job.output_dir)[0]


def kill_tree_but_the_trainer(job: Job, pid: int) -> None:
    """ckptsync alone is killed, with its upload process."""
    from tests.integration.conftest import descendants

    trainer = _trainer(job)
    for each in [pid, *descendants(pid)]:
        if each != trainer:
            os.kill(each, signal.SIGKILL)
