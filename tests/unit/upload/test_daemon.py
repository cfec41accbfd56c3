"""One look after the other at real folders, without a store; and whether a process has ended."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptsync import record
from ckptsync.checkpoint import Receipt, Rows, Run, Snapshot
from ckptsync.errors import CkptsyncError, LockedError, RestartedError
from ckptsync.processes import ended
from ckptsync.trainer import marker
from ckptsync.upload.daemon import Daemon, Watch
from ckptsync.upload.lineage import Appearance, Position, Relation, Save, relation
from ckptsync.upload.settings import UploadSettings
from ckptsync.upload.stop import Stop
from tests.checkpoints import make_checkpoint
from tests.integration.conftest import wait_for

RUN = Run("abc", "p", "me")


def daemon_of(output_dir: Path, **changes: object) -> Daemon:
    """One that keeps every pin, so that a test sees them all."""
    settings = {"settings": UploadSettings(keep_all=True), "quiet": 0.0} | changes
    return Daemon(Watch(output_dir, RUN, {}, "abc", **settings), Stop())  # type: ignore[arg-type]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with daemon_of(tmp_path).held() as held:
        yield held


def pinned(daemon: Daemon) -> list[int]:
    return [each.step for each in daemon.spool.pending()]


def events(daemon: Daemon, kind: str) -> list[dict[str, object]]:
    path = daemon.spool.root / "history.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["event"] == kind]


def durable_at(output_dir: Path, step: int, saved_at: float) -> None:
    """A receipt of an earlier watcher."""
    daemon = daemon_of(output_dir)
    daemon.spool.prepare()
    daemon.spool.receipts.keep(
        Receipt(f"checkpoint-{step}.x", step, saved_at, 1, "me/p/checkpoint-abc", "v0", "d", 1, 1, 0.0, saved_at)
    )


def test_a_whole_checkpoint_is_pinned_once(daemon: Daemon, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5)

    for _ in range(3):
        daemon.scan()

    assert pinned(daemon) == [5]
    assert len(events(daemon, "pinned")) == 1


def test_a_torn_checkpoint_is_not_pinned_and_its_reason_is_written_down_until_it_is_whole(daemon: Daemon, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 5, without=["trainer_state.json"])
    for _ in range(3):
        daemon.scan()

    assert pinned(daemon) == []
    assert len(events(daemon, "incomplete")) == 1
    assert "trainer_state.json" in str(events(daemon, "incomplete")[0]["reason"])

    shutil.rmtree(folder)
    make_checkpoint(tmp_path, 5)
    daemon.scan()
    assert pinned(daemon) == [5]


def test_a_save_that_is_cut_at_any_byte_of_its_state_is_never_pinned(daemon: Daemon, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 5)
    state = (folder / "trainer_state.json").read_bytes()

    for length in range(0, len(state) - 1, 20):
        (folder / "trainer_state.json").write_bytes(state[:length])
        daemon.scan()
        assert pinned(daemon) == []

    (folder / "trainer_state.json").write_bytes(state)
    daemon.scan()
    assert pinned(daemon) == [5]


def test_another_save_of_the_same_step_is_pinned_too(daemon: Daemon, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5, saved_at=1_000_000_000)
    daemon.scan()
    shutil.rmtree(tmp_path / "checkpoint-5")
    make_checkpoint(tmp_path, 5, content="again", saved_at=1_000_000_001)
    daemon.scan()

    assert pinned(daemon) == [5, 5]


def test_a_backlog_gives_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        make_checkpoint(tmp_path, step, best=str(tmp_path / "checkpoint-2"), saved_at=1_000_000_000 + step)

    with daemon_of(tmp_path, settings=UploadSettings()).held() as daemon:
        daemon.scan()

        assert pinned(daemon) == [2, 5]


def test_what_an_earlier_watcher_made_durable_is_not_pinned_again_and_older_ones_neither(tmp_path: Path) -> None:
    for step in (4, 5):
        make_checkpoint(tmp_path, step, saved_at=1_000_000_000 + step)
    durable_at(tmp_path, 6, 1_000_000_006.0)

    with daemon_of(tmp_path).held() as daemon:
        daemon.scan()

        assert pinned(daemon) == []


def test_a_training_that_started_over_is_an_error_and_nothing_of_it_is_pinned(tmp_path: Path) -> None:
    durable_at(tmp_path, 500, 1_000_000_000.0)

    with daemon_of(tmp_path).held() as daemon:
        daemon.scan()
        for step in (100, 200, 600):
            make_checkpoint(tmp_path, step, saved_at=1_000_000_000.0 + step)
            daemon.scan()

        assert pinned(daemon) == []
        assert len(events(daemon, "restarted")) == 1
        with pytest.raises(RestartedError, match=r"checkpoint-100 is not above step 500"):
            daemon.raise_outcome()


def test_after_a_resume_the_first_checkpoint_has_to_be_above_its_step(tmp_path: Path) -> None:
    record.update(tmp_path, resumed_step=500, resumed_at=1_000_000_000.0)

    with daemon_of(tmp_path).held() as daemon:
        daemon.scan()
        make_checkpoint(tmp_path, 500, saved_at=1_000_000_010.0)
        daemon.scan()

        assert isinstance(daemon.restarted, RestartedError)
        assert pinned(daemon) == []


def watched_once(output_dir: Path) -> Daemon:
    """A watcher that came, scanned once, and went."""
    with daemon_of(output_dir).held() as daemon:
        daemon.scan()
    return daemon


def test_a_training_that_started_over_while_nobody_watched_is_an_error_at_the_next_start(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 500)
    watched_once(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-500")
    make_checkpoint(tmp_path, 100, saved_at=1.0)

    found = watched_once(tmp_path)

    assert isinstance(found.restarted, RestartedError)
    assert pinned(found) == [500]


def test_a_file_that_is_put_into_an_older_checkpoint_changes_nothing(tmp_path: Path) -> None:
    with daemon_of(tmp_path).held() as daemon:
        older = make_checkpoint(tmp_path, 5)
        daemon.scan()
        make_checkpoint(tmp_path, 10)
        daemon.scan()
        (older / "all_results.json").write_text("{}")
        for path in older.iterdir():
            path.touch()
        daemon.scan()
        make_checkpoint(tmp_path, 15)
        daemon.scan()

        assert daemon.restarted is None
        assert pinned(daemon) == [5, 10, 15]


def test_the_clock_may_be_set_back_between_two_saves(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5, saved_at=2_000_000_000.0)
    watched_once(tmp_path)
    make_checkpoint(tmp_path, 10, saved_at=1_000_000_000.0)

    found = watched_once(tmp_path)

    assert found.restarted is None
    assert pinned(found) == [5, 10]


def test_a_resume_that_happens_while_it_is_watched_moves_the_position_back(tmp_path: Path) -> None:
    with daemon_of(tmp_path).held() as daemon:
        for step in (100, 200):
            make_checkpoint(tmp_path, step)
            daemon.scan()
        shutil.rmtree(tmp_path / "checkpoint-200")
        record.begin_attempt(tmp_path, resumed_step=100)
        daemon.scan()
        make_checkpoint(tmp_path, 110)
        daemon.scan()

        assert daemon.restarted is None
        assert pinned(daemon) == [100, 200, 110]
        assert [each.attempt for each in daemon.spool.pending()] == [None, None, 1]


def test_a_training_that_restarts_and_saves_before_the_first_scan_is_an_error_too(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 8)
    record.begin_attempt(tmp_path, resumed_step=8)
    with daemon_of(tmp_path).held() as daemon:
        make_checkpoint(tmp_path, 4, content="over again")

        daemon.scan()

        assert isinstance(daemon.restarted, RestartedError)
        assert pinned(daemon) == [8]


def test_a_training_that_restarts_is_an_error_though_one_scan_finds_its_save_and_the_one_above_it_quiet(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 8)
    record.begin_attempt(tmp_path, resumed_step=8)
    with daemon_of(tmp_path, settings=UploadSettings()).held() as daemon:
        make_checkpoint(tmp_path, 4, content="over again")

        daemon.scan()

        assert isinstance(daemon.restarted, RestartedError)
        assert pinned(daemon) == [8]


def test_a_save_that_a_newer_one_overtakes_within_one_scan_leaves_an_event(tmp_path: Path) -> None:
    with daemon_of(tmp_path, settings=UploadSettings()).held() as daemon:
        daemon.scan()
        for step in (4, 8):
            make_checkpoint(tmp_path, step)

        daemon.scan()

        assert pinned(daemon) == [8]
    lines = map(json.loads, (tmp_path / ".ckptsync" / "history.jsonl").read_text().splitlines())
    assert [each["step"] for each in lines if each["event"] == "superseded"] == [4]


def test_the_verdict_on_an_attempt_ends_with_it(tmp_path: Path) -> None:
    with daemon_of(tmp_path).held() as daemon:
        make_checkpoint(tmp_path, 100)
        daemon.scan()
        record.begin_attempt(tmp_path, resumed_step=100)
        make_checkpoint(tmp_path, 10)
        daemon.scan()
        assert isinstance(daemon.restarted, RestartedError)

        shutil.rmtree(tmp_path / "checkpoint-10")
        record.begin_attempt(tmp_path, resumed_step=100)
        make_checkpoint(tmp_path, 110)
        daemon.scan()

        assert daemon.restarted is None
        assert pinned(daemon) == [100, 110]


def test_what_another_run_left_in_the_queue_is_left_alone_and_does_not_count(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 100)
    with Daemon(Watch(tmp_path, Run("other", "p", "me"), {}, "other", quiet=0.0), Stop()).held() as other:
        other.scan()
    shutil.rmtree(tmp_path / "checkpoint-100")
    with daemon_of(tmp_path).held() as daemon:
        daemon.scan()
        make_checkpoint(tmp_path, 50)
        daemon.scan()

        assert daemon.restarted is None
        assert pinned(daemon) == [50]
        assert len(list((tmp_path / ".ckptsync/spool").iterdir())) == 2


def test_a_superseded_checkpoint_that_is_still_there_with_its_marker_is_no_restart(tmp_path: Path) -> None:
    record.begin_attempt(tmp_path)
    for step in (5, 10):
        make_checkpoint(tmp_path, step)
        marker.write(tmp_path, step, world_size=1, attempt=1)
    with daemon_of(tmp_path).held() as daemon:
        daemon.scan()
        # As an upload that was behind leaves it: neither a pin nor a receipt.
        daemon.spool.supersede([each for each in daemon.spool.pending() if each.step == 5], daemon.spool.pending()[-1], "behind")

    found = watched_once(tmp_path)

    assert found.restarted is None
    assert pinned(found) == [10]


def test_a_first_save_after_a_resume_has_to_continue_its_rows_where_the_training_names_no_attempt() -> None:
    before = Position(Save(10, 2, Rows(2, 1, "ab")), resumed=True)
    other = Save(20, 2, Rows(4, 1, "wxyz"))

    def related(*, marked: bool) -> Relation:
        return relation(other, before, Appearance.CREATED, own=lambda _: "wx", theirs=lambda _: "ab", marked=marked)

    assert related(marked=False) is Relation.RESTARTED
    assert related(marked=True) is Relation.NEXT


def test_a_restart_that_is_allowed_is_pinned(tmp_path: Path) -> None:
    durable_at(tmp_path, 500, 1_000_000_000.0)

    with daemon_of(tmp_path, allow_restart=True).held() as daemon:
        daemon.scan()
        make_checkpoint(tmp_path, 100, saved_at=1_000_000_010.0)
        daemon.scan()

        assert pinned(daemon) == [100]


def test_a_checkpoint_without_a_file_that_the_one_before_had_waits(daemon: Daemon, tmp_path: Path) -> None:
    first = make_checkpoint(tmp_path, 5)
    (first / "entropy_ctrl_state.json").write_text("{}")
    daemon.scan()
    make_checkpoint(tmp_path, 6)
    daemon.scan()

    assert pinned(daemon) == [5]
    assert "entropy_ctrl_state.json" in str(events(daemon, "incomplete")[0]["reason"])
    (tmp_path / "checkpoint-6" / "entropy_ctrl_state.json").write_text("{}")
    daemon.scan()
    assert pinned(daemon) == [5, 6]


def test_a_rank_that_is_missing_by_the_world_size_of_the_run_keeps_a_checkpoint_out(daemon: Daemon, tmp_path: Path) -> None:
    record.update(tmp_path, world_size=3)
    make_checkpoint(tmp_path, 5, world_size=2)
    make_checkpoint(tmp_path, 6, world_size=3)

    daemon.scan()

    assert pinned(daemon) == [6]


def test_scans_of_a_slow_file_system_are_so_far_apart_that_they_take_no_share_of_it(tmp_path: Path) -> None:
    with daemon_of(tmp_path, quiet=60.0).held() as daemon:
        daemon.scan()
        daemon._quiet_period.cost = 5.0
        resting = daemon._pause()
        make_checkpoint(tmp_path, 4)
        daemon.scan()
        daemon._quiet_period.cost = 5.0
        writing = daemon._pause()

    assert (resting, writing) == (5000.0, 100.0)


def test_a_checkpoint_that_rotation_took_is_nothing_to_speak_of(daemon: Daemon, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5)
    daemon.scan()
    shutil.rmtree(tmp_path / "checkpoint-5")
    daemon.scan()

    assert pinned(daemon) == [5]
    assert events(daemon, "incomplete") == []


def test_a_second_watcher_is_refused_and_the_first_goes_on(daemon: Daemon, tmp_path: Path) -> None:
    with pytest.raises(LockedError, match=f"pid {os.getpid()}"), daemon_of(tmp_path).held():
        pass

    make_checkpoint(tmp_path, 5)
    daemon.scan()
    assert pinned(daemon) == [5]


def test_a_watcher_that_ended_leaves_the_folder_to_the_next(tmp_path: Path) -> None:
    for step in (5, 6):
        with daemon_of(tmp_path).held() as daemon:
            make_checkpoint(tmp_path, step)
            daemon.scan()

    assert pinned(daemon) == [5, 6]


def test_a_file_system_that_fails_for_a_while_is_scanned_again(tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    output_dir.mkdir()
    with daemon_of(output_dir, settings=UploadSettings(mode="offline")).held() as daemon:
        watching = threading.Thread(target=daemon.follow)
        watching.start()
        output_dir.rename(tmp_path / "elsewhere")
        output_dir.write_text("no folder for a while")
        daemon.stop.wake.set()
        wait_for(lambda: daemon.failing, what="a scan that fails")
        output_dir.unlink()
        (tmp_path / "elsewhere").rename(output_dir)
        make_checkpoint(output_dir, 5)
        wait_for(lambda: pinned(daemon) == [5], what="the pin")
        daemon.stop.request()
        watching.join()

        daemon.raise_outcome()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not read the file")
def test_a_file_that_cannot_be_read_for_a_while_refuses_no_checkpoint() -> None:
    script = """if True:
        import os, sys
        from pathlib import Path
        from ckptsync.checkpoint import Run
        from ckptsync.upload import pinner
        from ckptsync.upload.daemon import Daemon, Watch
        from ckptsync.upload.stop import Stop

        weights = Path(sys.argv[1], "checkpoint-5", "model.safetensors")
        os.setgroups([])
        os.setegid(65534)
        os.seteuid(65534)
        with Daemon(Watch(Path(sys.argv[1]), Run("abc", "p", "me"), {}, "abc", quiet=0.0), Stop()).held() as daemon:
            daemon.scan()
            print(daemon.pinner.blocked, daemon.spool.waiting())
            os.seteuid(0)
            os.chmod(weights, 0o644)
            os.seteuid(65534)
            daemon.stop.event.wait(pinner.READ_RETRY_SECONDS)
            daemon.scan()
            print(daemon.pinner.blocked, [each.step for each in daemon.spool.pending()])
    """
    # pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory(prefix="ckptsync-test-") as folder:
        output_dir = Path(folder)
        (make_checkpoint(output_dir, 5) / "model.safetensors").chmod(0o000)
        output_dir.chmod(0o777)

        done = subprocess.run([sys.executable, "-c", script, str(output_dir)], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == ["True []", "False [5]"], done.stderr


def test_a_scan_that_fails_to_the_end_is_an_error(tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    output_dir.mkdir()
    with daemon_of(output_dir, settings=UploadSettings(mode="offline")).held() as daemon:
        output_dir.rename(tmp_path / "elsewhere")
        output_dir.write_text("no folder any more")
        daemon.stop.request()
        daemon.follow()

        with pytest.raises(CkptsyncError, match="could not be scanned"):
            daemon.raise_outcome()
        output_dir.unlink()
        (tmp_path / "elsewhere").rename(output_dir)


def test_a_folder_that_is_away_is_told_once_and_when_it_is_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    output_dir, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    make_checkpoint(output_dir, 5)
    with daemon_of(output_dir).held() as daemon:
        daemon.scan()
        output_dir.rename(elsewhere)
        make_checkpoint(elsewhere, 10)
        for _ in range(3):
            daemon.scan()
        with pytest.raises(CkptsyncError, match="with checkpoint-5 not durable"):
            daemon.raise_outcome()
        elsewhere.rename(output_dir)
        daemon.scan()
        daemon.raise_outcome()
        daemon.raise_gone()

        assert pinned(daemon) == [5, 10]
    told = [each.message for each in caplog.records if str(output_dir) in each.message]
    assert told == [
        f"{output_dir} is gone: nothing is uploaded until it is back; not durable: checkpoint-5",
        f"{output_dir} is back",
    ]


def test_what_became_durable_is_not_lost_with_the_folder_but_what_was_not_scanned_is(tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    make_checkpoint(output_dir, 5)
    with daemon_of(output_dir).held() as daemon:
        daemon.scan()
        commit(daemon)
        shutil.rmtree(output_dir)

        daemon.raise_outcome()
        with pytest.raises(CkptsyncError, match="is gone: what was saved in it after the last scan is not durable"):
            daemon.raise_gone(ended=True)
        daemon.uploader.uploads.finished = True
        daemon.raise_gone(ended=True)
        with pytest.raises(CkptsyncError, match="is gone"):
            daemon.raise_gone()


def test_a_receipt_that_a_vanished_folder_cannot_take_is_proof_all_the_same(tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    make_checkpoint(output_dir, 5)
    with daemon_of(output_dir).held() as daemon:
        daemon.scan()
        [snapshot] = daemon.spool.pending()
        shutil.rmtree(output_dir)
        with pytest.raises(FileNotFoundError):
            daemon.spool.commit(snapshot, receipt_of(snapshot))

        daemon.raise_outcome()
    assert not output_dir.exists()


def commit(daemon: Daemon) -> None:
    for each in daemon.spool.pending():
        daemon.spool.commit(each, receipt_of(each))


def receipt_of(snapshot: Snapshot) -> Receipt:
    return Receipt(snapshot.name, snapshot.step, 0.0, snapshot.sequence, "me/p/checkpoint-abc", "v0", "d", 1, 1, 0.0, 0.0)


def test_a_process_is_told_from_a_later_one_with_its_number() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        gone = ended(process.pid)
        assert not gone()

        process.kill()
        deadline = time.monotonic() + 10
        # A zombie counts as ended: nobody may wait for it.
        while not gone():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.wait()
        assert gone()


def test_a_process_that_ended_before_the_question_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()

    assert ended(process.pid)()
