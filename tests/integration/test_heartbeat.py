"""Who holds a run after a pause: output folders of one process stand for machines, with a real server between them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.errors import LockedError, TransientStoreError
from ckptsync.job.heartbeat import WATCHED, Heartbeat
from ckptsync.store import run_holder
from ckptsync.store.run_holder import HolderNotes, Sign
from ckptsync.upload.daemon import Daemon, Watch
from ckptsync.upload.stop import Stop
from tests.integration.conftest import UPSERT, Ended, Tool, descendants, events, program, refusal, wait_for
from tests.server import api
from tests.server_process import ServerProcess

DOWN = [{"match": {"path": "/graphql"}, "count": 1000, "action": {"status": 503}}]
TAKEN = "was taken over by ckptsync on"


class Machine(Heartbeat):
    """The heartbeat of an output folder, with a clock that a test sets forward."""

    def __init__(self, server: ServerProcess, run: Run, output_dir: Path, *, beside: bool = False) -> None:
        self.seconds = 0.0
        self.output_dir = output_dir
        connection = Connection(server.url, server.api_key)
        super().__init__(connection, run, output_dir, beside=beside, clock=lambda: self.seconds)

    def hold(self, run: Run) -> None:
        self.require_alone(run, training=False)
        self.start(run)

    def pause(self) -> None:
        """What it sees of a pause in which another machine may have taken the run."""
        self.seconds += WATCHED + 1


Make = Callable[..., Machine]


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Run:
    return Run(request.node.name[-60:], "tests", "local")


@pytest.fixture
def machine(tmp_path: Path, server: ServerProcess, run: Run) -> Iterator[Make]:
    made: list[Machine] = []
    with contextlib.ExitStack() as ending:

        def make(name: str, *, beside: bool = False) -> Machine:
            (tmp_path / name).mkdir(exist_ok=True)
            made.append(Machine(server, run, tmp_path / name, beside=beside))
            ending.enter_context(made[-1].ending())
            return made[-1]

        yield make


def notes_of(server: ServerProcess, run: Run) -> HolderNotes:
    return HolderNotes(Connection(server.url, server.api_key), run)


def held_in(server: ServerProcess, run: Run) -> str | None:
    """The output folder that the note names."""
    found = notes_of(server, run).read().holder
    return found.output_dir if found else None


def write_note(server: ServerProcess, run: Run, text: str) -> None:
    given = {"entityName": run.entity, "modelName": run.project, "name": f"ckptsync-{run.run_id}", "notes": text}
    api.data(server.graphql(UPSERT, input=given))


@pytest.mark.parametrize("ended", [True, False])
def test_a_machine_that_was_paused_while_another_took_the_run_has_lost_it(
    machine: Make, server: ServerProcess, run: Run, *, ended: bool
) -> None:
    one, two = machine("one"), machine("two")
    one.hold(run)
    with two.ending() if ended else contextlib.nullcontext():
        two.start(run)
    one.pause()

    with pytest.raises(LockedError, match=TAKEN) as refused:
        one.require_held()
    with one.ending():
        pass

    assert str(two.output_dir) in str(refused.value)
    assert str(one.output_dir) in refused.value.hint
    assert "--force" in refused.value.hint
    assert held_in(server, run) == str(two.output_dir)
    assert notes_of(server, run).read().running is not ended
    two.require_held()


def test_the_heartbeat_itself_notices_the_loss_and_ends_the_uploads(machine: Make, run: Run) -> None:
    one, two = machine("one"), machine("two")
    daemon = Daemon(Watch(one.output_dir, run, {}, run.run_id), Stop())
    one.guard(daemon)
    one.hold(run)
    with two.ending():
        two.start(run)
    one.pause()

    wait_for(lambda: daemon.lost, what="the loss")

    with pytest.raises(LockedError, match=TAKEN):
        daemon.raise_outcome()
    with pytest.raises(LockedError, match=TAKEN):
        one.guard(daemon)


def test_a_note_that_was_emptied_while_the_machine_was_paused_means_a_loss(
    machine: Make, server: ServerProcess, run: Run
) -> None:
    one = machine("one")
    one.hold(run)
    write_note(server, run, "")
    one.require_held()
    one.pause()

    with pytest.raises(LockedError, match="was taken over by another machine"):
        one.require_held()


@pytest.mark.parametrize("forced", ["one", "two"])
def test_a_machine_with_force_neither_loses_the_run_nor_takes_it(
    machine: Make, run: Run, caplog: pytest.LogCaptureFixture, forced: str
) -> None:
    one, two = (machine(name, beside=name == forced) for name in ("one", "two"))
    one.start(run)
    with two.ending():
        two.start(run)
        one.pause()
        one.require_held()
    one.pause()

    one.require_held()

    assert not one.lost
    assert "their checkpoints mix" in caplog.text


def test_a_store_that_cannot_be_asked_after_a_pause_delays_the_upload_and_is_no_loss(
    machine: Make, server: ServerProcess, run: Run
) -> None:
    one = machine("one")
    one.hold(run)
    server.faults(DOWN)
    one.pause()

    with pytest.raises(TransientStoreError):
        one.require_held()
    server.faults([])

    one.require_held()


def test_a_store_that_refuses_to_say_who_holds_the_run_holds_up_no_upload(machine: Make, server: ServerProcess, run: Run) -> None:
    one = machine("one")
    one.hold(run)
    server.faults([{"match": {"path": "/graphql"}, "count": 1000, "action": {"status": 401}}])
    one.pause()

    one.require_held()


def test_a_store_that_keeps_no_heartbeat_holds_up_no_upload(machine: Make, server: ServerProcess, run: Run) -> None:
    one = machine("one")
    server.faults(DOWN)
    one.hold(run)
    one.pause()

    one.require_held()


def test_the_note_of_a_machine_that_was_found_gone_is_no_loss_until_the_own_one_is_written(
    machine: Make, server: ServerProcess, run: Run, tmp_path: Path
) -> None:
    here = run_holder.here(tmp_path / "before")
    notes_of(server, run).beat(replace(here, process={**here.process, "born": "0"}))
    server.faults([{"match": {"operation": "Hold"}, "count": 1, "action": {"status": 503}}])
    one = machine("one")
    one.hold(run)
    unwritten = held_in(server, run)
    one.pause()

    wait_for(lambda: held_in(server, run) == str(one.output_dir), what="the note")

    assert unwritten == str(tmp_path / "before")
    assert not one.lost


def test_a_job_that_starts_again_in_the_same_folder_takes_the_run_from_nobody(machine: Make, run: Run) -> None:
    one, again = machine("one"), machine("one")
    one.hold(run)
    with again.ending():
        again.hold(run)
    one.pause()

    one.require_held()


def test_a_wait_for_a_silent_machine_that_is_stopped_does_not_take_the_run(
    machine: Make, server: ServerProcess, run: Run
) -> None:
    one, two, stop = machine("one"), machine("two"), Stop()
    one.hold(run)
    stop.request()

    with pytest.raises(LockedError, match=r"stopped while run .* is followed by ckptsync on"):
        two.require_alone(run, stop.event, training=False)

    assert held_in(server, run) == str(one.output_dir)


@pytest.mark.slow
def test_a_training_that_lives_on_without_ckptsync_takes_its_run_from_no_machine_that_took_it_over(
    tool: Tool, server: ServerProcess, tmp_path: Path, ended: Ended
) -> None:
    out, run = tmp_path / "out", Run("lives-on", "tests", "local")
    trains = program("make_checkpoint(pathlib.Path(sys.argv[1]), 4)", "time.sleep(600)")
    words: list[str | Path] = ["run", "--output-dir", out, "--run-id", run.run_id, "--quiet-period", "0.2", "--", *trains, out]
    job = ended(tool.start(*words, log=tmp_path / "log"))
    wait_for(lambda: events(out, "uploaded"), what="a version")
    training = descendants(job.pid)
    job.kill()
    other = Heartbeat(Connection(server.url, server.api_key), run, tmp_path / "other")

    with other.ending():
        other.start(run)
        refused = tool(*words)
        held = held_in(server, run)

    for pid in training:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert refused.returncode == 7, refused.stderr
    assert f"run {run} is already followed by ckptsync on" in refusal(refused)
    assert held == str(tmp_path / "other")
    assert not other.lost


@pytest.mark.parametrize(("trained", "waits"), [(True, False), (False, True)], ids=["its own", "not its own"])
def test_a_machine_that_ended_says_only_of_a_training_that_it_started_that_it_has_ended(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: bool, waits: bool
) -> None:
    there = {**run_holder.here(tmp_path).process, "host": "another"}
    before = replace(run_holder.here(tmp_path), process=there, ended=True, undone=True, trained=trained)
    monkeypatch.setattr(HolderNotes, "read_training", lambda _: Sign(host="another", running=True, beat="now"))
    heartbeat = Heartbeat(Connection("http://127.0.0.1:9", "key"), run, tmp_path)
    heartbeat._looked = Sign(holder=before)

    assert (heartbeat._other_training() is not None) == waits
