"""The same run on two machines, which share nothing but the store."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptsync.job import heartbeat
from tests.checkpoints import make_checkpoint
from tests.integration.conftest import Ended, Tool, descendants, events, kept, kill_tree, program, refusal, training, wait_for
from tests.server_process import ServerProcess

TRAINS = ("make_checkpoint(pathlib.Path(sys.argv[1]), 4)", "print('training', flush=True)", "time.sleep(600)")


class Machine(Tool):
    """The command on a machine with a host name and a home of its own."""

    def __init__(self, folder: Path, server: ServerProcess, name: str) -> None:
        super().__init__(folder / name, server)
        self.name = name
        self.output_dir = self.home / "out"
        self.log = self.home / "log"

    def command(self, *words: str | Path) -> list[str]:  # type: ignore[override]
        return ["unshare", "--uts", "sh", "-c", f'hostname {self.name} && exec "$@"', "sh", *Tool.command(*words)]

    def container(self, *words: str | Path) -> list[str]:
        """The command with pids of its own, under the host name of this machine."""
        return ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *Tool.command(*words)]

    def job(self, run_id: str, *options: str, lines: tuple[str, ...] = TRAINS) -> list[str | Path]:
        words = ["--run-id", run_id, "--quiet-period", "0.2", *options, "--", *program(*lines)]
        return ["run", "--output-dir", self.output_dir, *words, self.output_dir]

    def start_job(self, run_id: str, *options: str, lines: tuple[str, ...] = TRAINS) -> subprocess.Popen[bytes]:
        return self.start(*self.job(run_id, *options, lines=lines), log=self.log)

    def wait_until(self, text: str, *, seconds: float = 60) -> None:
        wait_for(lambda: text in self.log.read_text(), seconds=seconds, what=text)

    def wait_until_trained(self) -> None:
        self.wait_until("training\n")
        wait_for(lambda: events(self.output_dir, "uploaded"), what="a version")


Make = Callable[[str], Machine]


@pytest.fixture
def machine(tmp_path: Path, server: ServerProcess) -> Make:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only root can play a machine of another name")
    return lambda name: Machine(tmp_path, server, name)


def age_heartbeat(server: ServerProcess, run_id: str) -> None:
    """Let it be two minutes ago, as after an outage of the store."""
    with contextlib.closing(sqlite3.connect(server.data_dir / "server.db")) as database, database:
        changed = database.execute("UPDATE runs SET heartbeat_at = heartbeat_at - 120 WHERE name = ?", [f"ckptsync-{run_id}"])
        assert changed.rowcount == 1


@contextlib.contextmanager
def paused(pid: int) -> Iterator[None]:
    """The machine stands still, with the training on it, while the block runs."""
    whole = [pid, *descendants(pid)]
    for each in whole:
        os.kill(each, signal.SIGSTOP)
    yield
    for each in whole:
        os.kill(each, signal.SIGCONT)


@pytest.mark.slow
def test_a_run_that_another_machine_trains_is_refused_and_goes_on_with_force(
    machine: Make, server: ServerProcess, ended: Ended
) -> None:
    one, two = machine("machine-one"), machine("machine-two")
    ended(one.start_job("both"))
    one.wait_until_trained()

    refused = two(*two.job("both"))
    watched = two("watch", two.output_dir, "--run-id", "both", "--once")
    ended(two.start_job("both", "--force"))
    two.wait_until("training\n")

    assert (refused.returncode, watched.returncode) == (7, 7), refused.stderr + watched.stderr
    for each in (refused, watched):
        assert "run local/tests/both is already followed by ckptsync on machine-one" in refusal(each)
        assert str(one.output_dir) in each.stderr
        assert "--force" in each.stderr
    one.wait_until("run local/tests/both is also followed by ckptsync on machine-two")
    assert "training" not in refused.stdout


@pytest.mark.slow
def test_after_a_clean_end_the_next_machine_starts_at_once(machine: Make, server: ServerProcess, ended: Ended) -> None:
    one, two = machine("machine-one"), machine("machine-two")
    leaves = ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))", *TRAINS)
    first = ended(one.start_job("handed", lines=leaves))
    one.wait_until_trained()
    first.terminate()

    code = first.wait(60)
    done = two(*two.job("handed", lines=("print('training')", "make_checkpoint(pathlib.Path(sys.argv[1]), 8)")))

    assert code == 75, one.log.read_text()
    assert done.returncode == 0, done.stderr
    assert "waiting until" not in done.stderr
    assert [step for step, _ in kept(server, "handed")] == [4, 8]


@pytest.mark.slow
def test_a_training_that_its_job_ended_is_not_waited_for_though_its_run_still_says_running(
    machine: Make, server: ServerProcess, ended: Ended
) -> None:
    one, two = machine("machine-one"), machine("machine-two")
    logs = ("import wandb", "wandb.init(project='tests', id='cut', resume='allow')", *TRAINS)
    first = ended(one.start_job("cut", lines=logs))
    one.wait_until_trained()
    first.terminate()

    code = first.wait(60)
    done = two(*two.job("cut", lines=("print('training')", "make_checkpoint(pathlib.Path(sys.argv[1]), 8)")))

    assert code == 75, one.log.read_text()
    assert done.returncode == 0, done.stderr
    assert "waiting until" not in done.stderr


@pytest.mark.slow
def test_a_training_that_lives_on_without_ckptsync_on_another_machine_is_noticed(
    machine: Make, server: ServerProcess, ended: Ended
) -> None:
    one, two = machine("machine-one"), machine("machine-two")
    words = [*one.command()[:-3], *training(one.output_dir, steps=900, save=4, seconds=0.5)]
    ended(subprocess.Popen(words, env=one.environment | {"WANDB_RUN_ID": "orphan"}, cwd=one.home))
    wait_for(lambda: (one.output_dir / "checkpoint-4").is_dir(), seconds=120, what="a checkpoint")

    refused = two(*two.job("orphan"), timeout=120)

    assert refused.returncode == 7, refused.stderr
    assert "run local/tests/orphan is already trained on machine-one" in refusal(refused)


@pytest.mark.slow
def test_an_old_heartbeat_of_a_machine_that_lives_gives_the_run_to_nobody(
    machine: Make, server: ServerProcess, ended: Ended
) -> None:
    one, two = machine("machine-one"), machine("machine-two")
    first = ended(one.start_job("outage"))
    one.wait_until_trained()
    first.send_signal(signal.SIGSTOP)
    age_heartbeat(server, "outage")

    second = ended(two.start_job("outage"))
    two.wait_until("waiting until that ends")
    server.kill()
    time.sleep(heartbeat.WATCHED + 2)
    server.start()
    first.send_signal(signal.SIGCONT)

    assert second.wait(60) == 7, two.log.read_text()
    assert "is already followed by ckptsync on machine-one" in two.log.read_text()
    assert "training\n" not in two.log.read_text()


@pytest.mark.slow
def test_an_old_heartbeat_of_a_machine_that_is_gone_is_watched_for_a_short_time_only(
    machine: Make, server: ServerProcess, ended: Ended
) -> None:
    one, two = machine("machine-one"), machine("machine-two")
    first = ended(one.start_job("gone"))
    one.wait_until_trained()
    kill_tree(first.pid)
    age_heartbeat(server, "gone")

    ended(two.start_job("gone"))
    two.wait_until("waiting until that ends")
    begun = time.monotonic()
    two.wait_until("training\n")

    assert heartbeat.WATCHED - 2 < time.monotonic() - begun < heartbeat.SILENCE


@pytest.mark.slow
def test_a_machine_that_was_paused_ends_its_training_where_another_one_took_the_run_and_has_finished(
    machine: Make, server: ServerProcess, ended: Ended
) -> None:
    one, two = machine("machine-one"), machine("machine-two")
    saves_later = (*TRAINS[:2], "time.sleep(20)", "make_checkpoint(pathlib.Path(sys.argv[1]), 8)", "time.sleep(600)")
    first = ended(one.start_job("paused", lines=saves_later))
    one.wait_until_trained()
    with paused(first.pid):
        age_heartbeat(server, "paused")
        second = two(*two.job("paused", lines=("make_checkpoint(pathlib.Path(sys.argv[1]), 8, content='two')",)), timeout=120)
        kept_by_two = kept(server, "paused")
        below = descendants(first.pid)

    code = first.wait(60)

    assert (code, second.returncode) == (7, 0), one.log.read_text() + second.stderr
    assert "ckptsync: run local/tests/paused was taken over by ckptsync on machine-two" in one.log.read_text()
    assert [step for step, _ in kept_by_two] == [4, 8]
    assert kept(server, "paused") == kept_by_two
    assert (one.output_dir / "checkpoint-4").is_dir()
    wait_for(lambda: not [pid for pid in below if Path(f"/proc/{pid}").exists()], what="the end of the training")


@pytest.mark.slow
def test_a_watcher_that_was_paused_uploads_nothing_beside_the_machine_that_took_the_run(
    machine: Make, server: ServerProcess, ended: Ended
) -> None:
    one, two = machine("machine-one"), machine("machine-two")
    make_checkpoint(one.output_dir, 4)
    watcher = ended(one.start("watch", one.output_dir, "--run-id", "beside", "--quiet-period", "0.2", log=one.log))
    wait_for(lambda: events(one.output_dir, "uploaded"), what="a version")
    with paused(watcher.pid):
        age_heartbeat(server, "beside")
        later = ("make_checkpoint(pathlib.Path(sys.argv[1]), 8, content='two')", *TRAINS[1:])
        ended(two.start_job("beside", lines=later))
        wait_for(lambda: len(kept(server, "beside")) == 2, what="a version of the other machine")
        make_checkpoint(one.output_dir, 8)

    assert watcher.wait(60) == 7, one.log.read_text()
    assert "ckptsync: run local/tests/beside was taken over by ckptsync on machine-two" in one.log.read_text()
    assert [step for step, _ in kept(server, "beside")] == [4, 8]


@pytest.mark.slow
def test_a_container_with_the_same_host_name_counts_as_another_machine(
    machine: Make, server: ServerProcess, ended: Ended
) -> None:
    one, two = machine("container-one"), machine("container-two")
    first = one.container(*one.job("contained"))
    with one.log.open("ab") as log:
        ended(subprocess.Popen(first, env=one.environment, cwd=one.home, stdout=log, stderr=log))
    one.wait_until_trained()

    second = two.container(*two.job("contained"))
    refused = subprocess.run(second, env=two.environment, cwd=two.home, capture_output=True, text=True, timeout=60)

    assert refused.returncode == 7, refused.stderr
    assert f"is already followed by ckptsync on {socket.gethostname()}" in refused.stderr


@pytest.mark.slow
def test_a_machine_that_is_gone_is_waited_for_no_longer_than_its_silence(
    machine: Make, server: ServerProcess, ended: Ended
) -> None:
    one, two = machine("machine-one"), machine("machine-two")
    first = ended(one.start_job("lost"))
    one.wait_until_trained()
    kill_tree(first.pid)
    begun = time.monotonic()

    ended(two.start_job("lost", lines=("print('training', flush=True)", "time.sleep(600)")))
    two.wait_until("training\n", seconds=heartbeat.SILENCE + 30)

    assert time.monotonic() - begun < heartbeat.SILENCE + 30
    assert "is followed by ckptsync on machine-one" in two.log.read_text()
    assert "is silent for 60 s" in two.log.read_text()


@pytest.mark.slow
def test_a_killed_job_on_the_same_machine_is_not_waited_for(tool: Tool, tmp_path: Path, ended: Ended) -> None:
    words = ("--run-id", "same-machine", "--quiet-period", "0.2")
    one, log = tmp_path / "one", tmp_path / "log"
    job = ended(tool.start("run", "--output-dir", one, *words, "--", *program(*TRAINS), one, log=log))
    wait_for(lambda: events(one, "uploaded"), what="a version")
    kill_tree(job.pid)

    done = tool("run", "--output-dir", tmp_path / "two", *words, "--", *program("print('training')"))

    assert done.returncode == 0, done.stderr
    assert "waiting until" not in done.stderr


@pytest.mark.slow
def test_a_download_beside_a_training_needs_no_force(machine: Make, server: ServerProcess, ended: Ended) -> None:
    one, two = machine("machine-one"), machine("machine-two")
    ended(one.start_job("read"))
    one.wait_until_trained()

    done = two("resume", "read", "--output-dir", two.output_dir, "--download-only")

    assert done.returncode == 0, done.stderr


def test_without_a_connection_no_heartbeat_is_sent(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "out", 4)
    before = len(server.requests())

    done = tool("run", "--output-dir", tmp_path / "out", "--run-id", "offline", "--", *program(), WANDB_MODE="offline")

    assert done.returncode == 0, done.stderr
    assert len(server.requests()) == before
