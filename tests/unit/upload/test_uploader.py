"""The queue is emptied through a real child process that fails as it is told to."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckptsync import record
from ckptsync.checkpoint import Run, Snapshot
from ckptsync.errors import ConfigurationError, LockedError, PermanentStoreError, RejectedError, TransientStoreError
from ckptsync.store.retrying import Patience
from ckptsync.upload.child import PUBLISH, Child
from ckptsync.upload.child_lifecycle import ChildLifecycle
from ckptsync.upload.settings import UploadSettings
from ckptsync.upload.spool import Spool
from ckptsync.upload.uploader import Uploader
from tests.checkpoints import checkpoint_at, make_checkpoint

CHILD = (sys.executable, str(Path(__file__).with_name("scripted_child.py")))
QUICK = Patience(first=0.001, longest=0.002)

Make = Callable[..., Uploader]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    (tmp_path / "out").mkdir()
    spool = Spool(tmp_path / "out")
    spool.prepare()
    return spool


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def make(spool: Spool, stop: threading.Event, tmp_path: Path) -> Iterator[Make]:
    """A function from the child's script to an uploader; changes go into the settings."""
    made = []

    def uploader(*script: str, command: tuple[str, ...] = CHILD, **changes: object) -> Uploader:
        (tmp_path / "SCRIPT").write_text(json.dumps(script))
        settings = UploadSettings(**({"keep_all": True, "patience": QUICK, "linger": 0.05} | changes))  # type: ignore[arg-type]
        environment = {**os.environ, "SCRIPT": str(tmp_path / "SCRIPT")}
        made.append(Uploader(Run("a", "p"), spool, environment, settings, stop, stem="a", command=command))
        return made[-1]

    yield uploader
    for each in made:
        each.close()


def pin(spool: Spool, step: int) -> Snapshot:
    return spool.pin(checkpoint_at(make_checkpoint(spool.output_dir, step)))


def jobs(tmp_path: Path) -> list[tuple[str, str]]:
    """(process id, snapshot) of each job that a child got."""
    lines = (tmp_path / "SCRIPT.log").read_text().splitlines()
    return [(process, name) for process, _, name in (line.partition(" ") for line in lines)]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def durable(spool: Spool) -> list[int]:
    return sorted(each.step for each in spool.receipts)


def test_the_log_in_fills_in_the_entity(make: Make) -> None:
    assert make().check() == Run("a", "p", "me")


def test_a_refused_key_is_told_at_the_log_in(make: Make) -> None:
    with pytest.raises(RejectedError, match="injected: key"):
        make("rejected", "rejected").check()


def test_everything_goes_through_one_child_in_the_order_of_saving(make: Make, spool: Spool, tmp_path: Path) -> None:
    pinned = [pin(spool, step) for step in (10, 9, 11)]

    assert make().drain()

    assert [name for _, name in jobs(tmp_path)] == [each.name for each in pinned]
    assert len({process for process, _ in jobs(tmp_path)}) == 1
    assert durable(spool) == [9, 10, 11]
    assert spool.pending() == []
    assert {each.artifact for each in spool.receipts} == {"me/p/checkpoint-a"}


def test_when_behind_only_the_newest_goes(make: Make, spool: Spool, tmp_path: Path) -> None:
    *_, newest = [pin(spool, step) for step in (9, 10, 11)]

    assert make(keep_all=False).drain()

    assert [name for _, name in jobs(tmp_path)] == [newest.name]
    assert spool.pending() == []


@pytest.mark.parametrize("word", ["away", "dies", "dies in its answer"])
def test_what_may_pass_is_tried_again_by_a_fresh_child_at_once(make: Make, spool: Spool, tmp_path: Path, word: str) -> None:
    pin(spool, 5)
    started = time.monotonic()

    assert make(word, word, stall=60.0).drain()

    assert time.monotonic() - started < 30
    assert durable(spool) == [5]
    assert len({process for process, _ in jobs(tmp_path)}) == 3


def test_a_child_that_shows_no_life_is_ended_and_the_upload_tried_again(make: Make, spool: Spool, tmp_path: Path) -> None:
    pin(spool, 5)

    assert make("hangs", stall=0.5).drain()

    assert durable(spool) == [5]
    hung = int(jobs(tmp_path)[0][0])
    assert not Path(f"/proc/{hung}").exists()


@pytest.mark.parametrize("ending", ["a notice", "a stop"])
def test_an_upload_that_stands_still_gives_up_sooner_once_the_machine_or_the_watcher_goes(
    make: Make, spool: Spool, stop: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr("ckptsync.upload.uploader.STOP_STALL", 1.0)
    monkeypatch.setattr("ckptsync.upload.deadline.LEAST_STALL", 1.0)
    pin(spool, 5)
    uploader = make("hangs", stall=50.0)
    uploads = threading.Thread(target=uploader.drain)
    uploads.start()
    wait_until((tmp_path / "SCRIPT.log").exists)

    if ending == "a notice":
        uploader.hurry(2.0)
    else:
        stop.set()
    uploads.join(20)

    assert not uploads.is_alive()
    assert durable(spool) == ([5] if ending == "a notice" else [])
    assert spool.waiting() == ([] if ending == "a notice" else [each.name for each in spool.pending()])


def test_a_long_hash_is_no_stall(make: Make, spool: Spool, tmp_path: Path) -> None:
    pin(spool, 5)

    assert make("hashes slowly", stall=1.0).drain()

    assert len(jobs(tmp_path)) == 1


def test_a_permanent_error_parks_and_the_next_goes_on(make: Make, spool: Spool) -> None:
    pin(spool, 5)
    uploader = make("quota")

    assert uploader.drain()

    assert isinstance(uploader.last_error, PermanentStoreError)
    assert [(each.step, reason) for each, reason in spool.parked()] == [(5, "injected: quota")]
    pin(spool, 6)
    assert uploader.drain()
    assert durable(spool) == [6]


def test_a_snapshot_that_was_rewritten_is_thrown_away_to_be_taken_again(make: Make, spool: Spool) -> None:
    pinned = pin(spool, 5)

    assert make("changed").drain()

    assert (spool.pending(), spool.parked(), durable(spool)) == ([], [], [])
    assert not spool.knows(pinned.name)


def test_a_best_model_that_was_rewritten_meanwhile_is_looked_for_anew(make: Make, spool: Spool, tmp_path: Path) -> None:
    make_checkpoint(spool.output_dir, 3, max_steps=5)
    best = str(spool.output_dir / "checkpoint-3")
    pinned = spool.pin(checkpoint_at(make_checkpoint(spool.output_dir, 5, max_steps=5, best=best)))

    assert make("done", "changed").drain()

    assert durable(spool) == [5]
    # The checkpoint and its model, and both once more.
    assert [name for _, name in jobs(tmp_path)] == [pinned.name, "check", pinned.name, "check"]


def test_when_the_patience_ends_everything_still_waits(make: Make, spool: Spool) -> None:
    pinned = pin(spool, 5)
    uploader = make(*["away"] * 1000, patience=Patience(first=0.001, longest=0.002, give_up_after=0.3))

    assert not uploader.drain()

    assert isinstance(uploader.last_error, TransientStoreError)
    assert spool.pending() == [pinned]


def test_a_stop_ends_the_wait_for_the_next_attempt(make: Make, spool: Spool, stop: threading.Event) -> None:
    pinned = pin(spool, 5)
    uploader = make(*["away"] * 1000, patience=Patience(first=600.0, longest=600.0))
    timer = threading.Timer(0.5, stop.set)

    timer.start()
    started = time.monotonic()
    assert not uploader.drain()
    timer.join()

    assert time.monotonic() - started < 20
    assert spool.pending() == [pinned]


def test_a_run_that_another_machine_took_over_is_uploaded_to_no_more(make: Make, spool: Spool, tmp_path: Path) -> None:
    taken = LockedError("injected: taken over")
    uploader = make()
    pin(spool, 5)

    def require_held() -> None:
        raise taken

    uploader.require_held = require_held

    assert not uploader.drain()
    assert uploader.last_error is taken
    assert not (tmp_path / "SCRIPT.log").exists()
    assert [each.step for each in spool.pending()] == [5]


def test_the_current_upload_ends_when_another_machine_takes_the_run_over(make: Make, spool: Spool, tmp_path: Path) -> None:
    uploader = make("hangs", "done")
    pin(spool, 5)
    uploads = threading.Thread(target=uploader.drain)
    uploads.start()
    wait_until((tmp_path / "SCRIPT.log").exists)

    uploader.lose(LockedError("injected: taken over"))
    uploads.join(30)

    assert not uploads.is_alive()
    assert len(jobs(tmp_path)) == 1
    assert [each.step for each in spool.pending()] == [5]


def test_a_child_that_cannot_be_started_loses_nothing(make: Make, spool: Spool) -> None:
    pinned = pin(spool, 5)

    assert not make(command=("/no/such/program",), patience=Patience(first=0.001, longest=0.002, give_up_after=0.05)).drain()

    assert spool.pending() == [pinned]


def test_a_receipt_that_cannot_be_written_is_written_when_there_is_room_again(make: Make, spool: Spool) -> None:
    pin(spool, 5)
    (spool.root / "receipts").rename(spool.root / "elsewhere")
    (spool.root / "receipts").write_text("a file where the folder should be")
    uploader = make(patience=Patience(first=0.001, longest=0.002, give_up_after=0.05))

    assert not uploader.drain()

    (spool.root / "receipts").unlink()
    assert uploader.drain()
    assert durable(spool) == [5]


def test_the_thread_uploads_what_it_is_woken_for_and_ends_when_told(make: Make, spool: Spool) -> None:
    uploader = make(linger=0.01)
    thread = threading.Thread(target=uploader.serve)

    thread.start()
    for step in range(1, 6):
        pin(spool, step)
        uploader.wake()
        deadline = time.monotonic() + 20
        while step not in durable(spool):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    pin(spool, 6)
    uploader.finish()
    thread.join(20)

    assert not thread.is_alive()
    assert durable(spool) == [1, 2, 3, 4, 5, 6]


def test_a_word_to_finish_is_never_missed(make: Make) -> None:
    for _ in range(200):
        uploader = make(linger=0.0002)
        thread = threading.Thread(target=uploader.serve)
        thread.start()
        uploader.finish()
        thread.join(20)

        assert not thread.is_alive()


def test_checkpoints_go_to_the_project_that_the_training_names_itself_with_one_warning(
    make: Make, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (5, 6):
        pin(spool, step)
    record.update(spool.output_dir, run_id="a", project="of-wandb-init")

    assert make().drain()

    assert caplog.text.count("the training and its checkpoints go to project of-wandb-init, not p") == 1
    assert durable(spool) == [5, 6]


def test_a_training_that_logs_to_another_run_is_warned_of_once(
    make: Make, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (5, 6):
        pin(spool, step)
    record.update(spool.output_dir, run_id="b", project="p")

    assert make().drain()

    assert caplog.text.count("the training logs to run p/b") == 1
    assert "add --project p --run-id b" in caplog.text


def test_a_child_that_is_expected_to_be_needed_is_started_before_and_does_the_job(
    make: Make, spool: Spool, tmp_path: Path, stop: threading.Event
) -> None:
    uploader = make(linger=30.0)
    thread = threading.Thread(target=uploader.serve)
    thread.start()

    uploader.expect()
    wait_until(lambda: uploader.child.running)
    pin(spool, 10)
    uploader.wake()
    wait_until(lambda: durable(spool) == [10])
    uploader.finish()
    thread.join(30)

    assert len({process for process, _ in jobs(tmp_path)}) == 1


def test_no_child_is_started_where_nothing_is_uploaded(make: Make) -> None:
    uploader = make(mode="offline")

    uploader.expect()

    assert not uploader.child.running


@pytest.mark.parametrize("moves", [True, False])
def test_what_gets_through_a_limit_is_progress_though_the_client_stands(make: Make, tmp_path: Path, moves: bool) -> None:
    (tmp_path / "SCRIPT").write_text('["seems to stand"]')
    environment = {**os.environ, "SCRIPT": str(tmp_path / "SCRIPT")}
    child = Child(Run("a", "p"), environment, tmp_path, command=CHILD)
    passed = itertools.count() if moves else itertools.repeat(0)
    try:
        with contextlib.nullcontext() if moves else pytest.raises(TransientStoreError, match="no progress"):
            child.ask({"op": "check"}, stall=lambda: 0.6, on_progress=lambda _: None, passed=lambda: next(passed))
    finally:
        child.close()


def test_a_limit_that_is_set_later_holds_from_the_next_job_on(make: Make, spool: Spool, tmp_path: Path) -> None:
    uploader = make(linger=60)
    pin(spool, 1)
    uploader.drain()
    uploader.settings = replace(uploader.settings, max_rate=1_000_000)
    pin(spool, 2)
    pin(spool, 3)

    uploader.drain()

    first, second, third = [process for process, _ in jobs(tmp_path)]
    assert first != second == third


@pytest.mark.parametrize(("max_rate", "gives"), [(None, True), (1000, False)])
def test_in_a_hurry_an_upload_gives_way_to_the_newest_where_the_line_is_known(
    make: Make, spool: Spool, stop: threading.Event, tmp_path: Path, max_rate: int | None, gives: bool
) -> None:
    uploader = make("done", "hangs", max_rate=max_rate)
    pin(spool, 1)
    uploader.drain()
    pin(spool, 2)
    uploads = threading.Thread(target=uploader.drain)
    uploads.start()
    wait_until(lambda: len(jobs(tmp_path)) == 2)
    pin(spool, 3)

    # By the receipt an upload takes 0.5 s, so this one is overdue; with a limit the receipt says nothing of the line without it.
    time.sleep(0.9)
    uploader.hurry(60)
    found = uploader.give_way()

    stop.set()
    uploader.kill()
    uploads.join()
    assert found is gives


def test_a_child_that_cannot_start_is_a_configuration_error_with_its_last_words(tmp_path: Path) -> None:
    started = """{"event": "progress", "stage": "hash", "done": 0, "total": 0, "moved": 1}"""
    code = f"import sys; print('{started}', flush=True); sys.stderr.write('trace\\n'); sys.exit('No module named injected')"
    command = (sys.executable, "-c", code)

    with pytest.raises(ConfigurationError, match="the upload process cannot start: No module named injected"):
        Child(Run("a", "p"), dict(os.environ), tmp_path, command=command).ask(
            {"op": "check"}, stall=lambda: 30.0, on_progress=lambda _: None
        )


def test_after_a_child_that_cannot_start_the_next_job_gets_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "SCRIPT").write_text("[]")
    environment = {**os.environ, "SCRIPT": str(tmp_path / "SCRIPT")}
    broken = tmp_path / "broken"
    broken.touch()
    start = "import os, sys; os.path.exists(sys.argv[1]) and sys.exit('injected: broken'); os.execv(sys.argv[2], sys.argv[2:])"
    process = ChildLifecycle(
        Run("a", "p"),
        environment,
        tmp_path / "private",
        UploadSettings(),
        command=(sys.executable, "-c", start, str(broken), *CHILD),
    )
    try:
        with pytest.raises(ConfigurationError, match="injected: broken"):
            process.ask({"op": "check"})
        broken.unlink()

        assert process.ask({"op": "check"})["event"] == "done"
    finally:
        process.close()


def test_a_child_that_cannot_write_its_folder_is_a_transient_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = {**os.environ, "WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    child = Child(Run("a", "p"), environment, tmp_path / "file" / "private", command=PUBLISH)

    try:
        with pytest.raises(TransientStoreError, match=r"the upload process cannot write to .*: Not a directory"):
            child.ask({"op": "check"}, stall=lambda: 60.0, on_progress=lambda _: None)
    finally:
        child.kill()


def test_where_nothing_shows_progress_nothing_counts_as_a_stall(tmp_path: Path) -> None:
    (tmp_path / "SCRIPT").write_text('["seems to stand"]')
    environment = {**os.environ, "SCRIPT": str(tmp_path / "SCRIPT")}
    process = ChildLifecycle(
        Run("a", "p"), environment, tmp_path / "private", UploadSettings(stall=0.6), command=CHILD, proc=tmp_path / "no proc here"
    )
    try:
        assert process.ask({"op": "check"})["event"] == "done"
    finally:
        process.close()
