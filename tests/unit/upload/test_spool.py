"""The queue: its states, its receipts, and what a start finishes after a crash."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from ckptsync import record
from ckptsync.checkpoint import Receipt, Snapshot
from ckptsync.errors import PermanentStoreError
from ckptsync.locks import FolderLock
from ckptsync.trainer import marker
from ckptsync.upload.spool import Spool
from tests.checkpoints import checkpoint_at, make_checkpoint


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return started(tmp_path)


def started(output_dir: Path) -> Spool:
    """What a process that was just started sees."""
    found = Spool(output_dir, clock=lambda: 1234.5678)
    found.prepare()
    return found


def pin(spool: Spool, step: int, **changes: object) -> Snapshot:
    return spool.pin(checkpoint_at(make_checkpoint(spool.output_dir, step, **changes)))  # type: ignore[arg-type]


def receipt(pinned: Snapshot, version: str = "v0") -> Receipt:
    return Receipt(
        snapshot=pinned.name,
        step=pinned.step,
        saved_at=pinned.saved_at,
        sequence=pinned.sequence,
        artifact="me/p/checkpoint-a",
        version=version,
        digest="d",
        bytes=pinned.bytes,
        files=len(pinned.files),
        seconds=1.23456,
        committed_at=2000.0,
    )


def names(snapshots: list[Snapshot]) -> list[str]:
    return [each.name for each in snapshots]


def events(spool: Spool) -> list[dict[str, object]]:
    return [json.loads(line) for line in (spool.root / "history.jsonl").read_text().splitlines()]


def test_what_is_pinned_waits_in_the_order_of_saving_even_after_a_start(spool: Spool, tmp_path: Path) -> None:
    pinned = [pin(spool, 10), pin(spool, 9), pin(spool, 100)]

    assert names(spool.pending()) == names(pinned)
    assert started(tmp_path).pending() == spool.pending() == pinned


def test_a_start_goes_on_counting_from_what_is_queued_parked_and_durable(spool: Spool, tmp_path: Path) -> None:
    durable, parked, queued = pin(spool, 1), pin(spool, 2), pin(spool, 3)
    spool.commit(durable, receipt(durable))
    spool.park(parked, PermanentStoreError("injected: quota"))

    assert pin(started(tmp_path), 4).sequence == queued.sequence + 1
    spool.commit(queued, receipt(queued))
    assert pin(started(tmp_path), 5).sequence == queued.sequence + 2


def test_a_commit_leaves_a_receipt_for_the_owner_alone_and_no_pin(spool: Spool) -> None:
    pinned = pin(spool, 5)

    spool.commit(pinned, receipt(pinned))

    assert spool.pending() == []
    assert list(spool.receipts) == [receipt(pinned)]
    assert spool.receipts.newest() == receipt(pinned)
    assert stat.S_IMODE(spool.receipts.path(pinned.name).stat().st_mode) == 0o600
    assert spool.knows(pinned.name)
    assert [event["event"] for event in events(spool)] == ["pinned", "uploaded"]
    assert events(spool)[1] == {
        "time": 1234.568,
        "event": "uploaded",
        "checkpoint": "checkpoint-5",
        "print": pinned.fingerprint,
        "step": 5,
        "artifact": "me/p/checkpoint-a:v0",
        "bytes": pinned.bytes,
        "seconds": 1.235,
    }


def test_a_start_finishes_a_commit_that_was_cut_after_its_receipt(spool: Spool, tmp_path: Path) -> None:
    pinned = pin(spool, 5)
    spool.receipts.keep(receipt(pinned))

    again = Spool(tmp_path)
    swept = again.prepare()

    assert swept == [pinned.name]
    assert again.pending() == []
    assert list(again.receipts) == [receipt(pinned)]


def test_a_start_sweeps_half_made_pins_receipts_and_downloads_and_nothing_else(spool: Spool, tmp_path: Path) -> None:
    pinned = pin(spool, 5)
    for folder in ("spool", "parked", "incoming"):
        (spool.root / folder / ".tmp-checkpoint-9.abc-1").mkdir()
    (spool.root / "receipts" / ".tmp-checkpoint-9.json-1").touch()
    (spool.root / "incoming" / "checkpoint-abc.v3").mkdir()
    (spool.root / "torn" / "checkpoint-7-then").mkdir()
    (tmp_path / ".tmp-of-another-program").touch()

    swept = Spool(tmp_path).prepare()

    assert len(swept) == 4
    assert all(name.startswith(".tmp-checkpoint-9") for name in swept)
    assert names(spool.pending()) == [pinned.name]
    assert (spool.root / "incoming" / "checkpoint-abc.v3").is_dir()
    assert [path.name for path in spool.torn()] == ["checkpoint-7-then"]
    assert (tmp_path / ".tmp-of-another-program").exists()


def test_what_is_parked_keeps_its_bytes_and_its_reason_and_comes_back_into_the_queue(spool: Spool, tmp_path: Path) -> None:
    first, second = pin(spool, 5), pin(spool, 6)
    spool.park(first, PermanentStoreError("injected: quota"))
    shutil.rmtree(tmp_path / "checkpoint-5")

    assert names(spool.pending()) == [second.name]
    assert [(each.name, reason) for each, reason in started(tmp_path).parked()] == [(first.name, "injected: quota")]
    assert spool.knows(first.name)

    assert spool.unpark() == [first.name]
    assert names(spool.pending()) == [first.name, second.name]
    assert spool.parked() == []
    assert {path.name for path in first.directory.iterdir()} == {"files", "snapshot.json"}


def test_what_is_superseded_or_changed_leaves_an_event_and_may_come_again(spool: Spool) -> None:
    first, second, third = pin(spool, 5), pin(spool, 6), pin(spool, 7)

    spool.supersede([first], third, "behind")
    spool.discard(second)

    assert names(spool.pending()) == [third.name]
    assert not spool.knows(first.name)
    assert not spool.knows(second.name)
    assert [(event["event"], event["step"]) for event in events(spool)[-2:]] == [("superseded", 5), ("changed", 6)]
    assert events(spool)[-2]["by"] == third.name


def test_the_same_save_is_not_pinned_twice_by_who_asks_first_and_another_save_of_the_step_is_another(spool: Spool) -> None:
    first = pin(spool, 5, saved_at=1_000_000_000)

    second = pin(spool, 5, content="again", saved_at=1_000_000_001)

    assert spool.knows(first.name)
    assert first.name != second.name
    assert names(spool.pending()) == [first.name, second.name]


def test_what_cannot_be_read_is_no_reason_to_fail(spool: Spool) -> None:
    pinned = pin(spool, 5)
    (spool.root / "spool" / "checkpoint-9.abc").mkdir()
    (spool.root / "parked" / "checkpoint-9.abd").mkdir()
    (spool.root / "receipts" / "checkpoint-9.abe.json").write_text('{"schema": 1, "snapshot": "x"}')
    (spool.root / "receipts" / "checkpoint-9.abf.json").write_text('{"schema": 2}')
    (spool.root / "receipts" / "checkpoint-9.abg.json").write_text("")

    assert names(spool.pending()) == [pinned.name]
    assert spool.parked() == []
    assert list(spool.receipts) == []
    assert spool.receipts.newest() is None


def test_looking_at_an_output_folder_that_nobody_watched_makes_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)

    assert (spool.pending(), spool.parked(), spool.torn(), list(spool.receipts)) == ([], [], [], [])
    assert list(tmp_path.iterdir()) == []


def test_an_event_that_cannot_be_written_stops_nothing(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    (spool.root / "history.jsonl").mkdir()

    pinned = pin(spool, 5)

    assert names(spool.pending()) == [pinned.name]
    assert "history.jsonl" in caplog.text


def test_an_event_may_name_a_file_that_is_no_utf_8(spool: Spool) -> None:
    spool.history.record("incomplete", reason="caf\udce9: empty")

    assert events(spool)[0]["reason"] == "caf\udce9: empty"


def test_no_name_directly_under_the_output_folder_looks_like_a_checkpoint(spool: Spool, tmp_path: Path) -> None:
    pinned = pin(spool, 5)
    spool.park(pinned, PermanentStoreError("injected: quota"))

    assert {path.name for path in tmp_path.iterdir()} == {".ckptsync", "checkpoint-5"}


def test_a_snapshot_that_the_file_system_cannot_read_for_a_while_stays_in_the_queue(spool: Spool, tmp_path: Path) -> None:
    pinned = spool.pin(checkpoint_at(make_checkpoint(tmp_path, 5)))
    file = pinned.directory / "snapshot.json"
    aside = file.rename(tmp_path / "aside")
    # Reading it is an error of the file system (ELOOP), as EIO would be.
    file.symlink_to(file.name)

    swept = spool.prepare()
    file.unlink()
    aside.rename(file)

    assert not swept
    assert spool.pending() == [pinned]


WRONG: list[dict[str, object]] = [
    {"sequence": "1"},
    {"step": None},
    {"rows": []},
    {"attempt": "first"},
    {"saved_at": "now"},
    {"artifact": 5},
    {"bytes": None},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_receipt_with_values_of_other_types_is_passed_over(spool: Spool, wrong: dict[str, object]) -> None:
    good, bad = pin(spool, 4), pin(spool, 8)
    for each in (good, bad):
        spool.commit(each, receipt(each))
    path = spool.receipts.path(bad.name)
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))

    assert list(spool.receipts) == [receipt(good)]


def test_what_is_no_file_where_the_state_is_kept_is_passed_over(spool: Spool, tmp_path: Path) -> None:
    good, bad = pin(spool, 4), pin(spool, 8)
    for each in (good, bad):
        spool.commit(each, receipt(each))
    for path in (spool.receipts.path(bad.name), record.path_of(tmp_path), spool.root / "history.jsonl", spool.root / "lock"):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    spool.receipts.path("checkpoint-9.x").symlink_to("/dev/zero")

    assert list(spool.receipts) == [receipt(good)]
    assert record.read(tmp_path).values == {}
    assert list(spool.history.pruned()) == []
    assert FolderLock(spool.lock_path, of=tmp_path).holder is None


def test_a_last_save_that_is_gone_and_was_never_pinned_is_lost_but_not_one_of_before(tmp_path: Path, spool: Spool) -> None:
    for step in (4, 8):
        shutil.rmtree(make_checkpoint(tmp_path, step))
        marker.write(tmp_path, step, world_size=1, attempt=2, though_gone=True)

    assert spool.lost_save(2) == "checkpoint-8"
    assert spool.lost_save(1) is None
    assert not (tmp_path / ".ckptsync/complete/checkpoint-4").exists()


def test_a_last_save_that_is_there_or_was_pinned_is_not_lost(tmp_path: Path, spool: Spool) -> None:
    made = make_checkpoint(tmp_path, 8)
    marker.write(tmp_path, 8, world_size=1, attempt=2)
    there = spool.lost_save(2)
    (made / "README.md").write_text("a card")
    spool.pin(checkpoint_at(made), attempt=2)
    shutil.rmtree(made)

    assert (there, spool.lost_save(2)) == (None, None)


def test_the_pin_of_an_earlier_attempt_is_none_of_a_last_save(tmp_path: Path, spool: Spool) -> None:
    made = make_checkpoint(tmp_path, 8)
    spool.pin(checkpoint_at(made), attempt=1)
    shutil.rmtree(made)
    marker.write(tmp_path, 8, world_size=1, attempt=2, though_gone=True)

    assert spool.lost_save(2) == "checkpoint-8"
