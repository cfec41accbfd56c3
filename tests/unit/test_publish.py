"""The child's side: one answer to each job, whatever the store does."""

from __future__ import annotations

import errno
import io
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ckptsync.checkpoint import Run, Snapshot, Version
from ckptsync.errors import CkptsyncError, PermanentStoreError, SnapshotChangedError, TransientStoreError
from ckptsync.layouts import rows_digest
from ckptsync.publish import Answers, Publisher
from ckptsync.store.contract import Progress, Upload
from ckptsync.upload import retention
from ckptsync.upload.retention import Choice, Retention
from ckptsync.upload.spool import Spool
from tests.checkpoints import checkpoint_at, make_checkpoint

VERSION = Version("me/p/checkpoint-a:v0", "checkpoint-a", "v0", ("latest",), 1, 1, "d", 0.0)


class FakeStore:
    """Does what is scripted: `faults` has the error to raise by the method's name."""

    def __init__(self, **faults: Exception) -> None:
        self.faults = faults
        self.calls: list[str] = []
        self.attached: Run | None = None
        self.holder: Version | None = None
        self.put_as: Upload | None = None
        self.returned = VERSION
        self.measured: Mapping[str, float] = {}
        self.seconds = 0.0

    def check(self, run: Run) -> Run:
        self._scripted("check")
        return Run(run.run_id, run.project, "me")

    def put(self, snapshot: Snapshot, upload: Upload, *, progress: Progress) -> Version:
        self._scripted("put")
        self.put_as = upload
        progress(1, 10)
        time.sleep(self.seconds)
        return self.returned

    def versions(self, name: str) -> list[Version]:
        self._scripted("versions")
        return []

    def latest(self, name: str) -> Version | None:
        return self.holder

    def attach(self, version: Version, run: Run) -> bool:
        self._scripted("attach")
        self.attached = run
        return True

    def measure(self, values: Mapping[str, float]) -> None:
        self._scripted("measure")
        self.measured = values

    def _scripted(self, method: str) -> None:
        self.calls.append(method)
        if method in self.faults:
            raise self.faults[method]


@pytest.fixture
def pinned(tmp_path: Path) -> Snapshot:
    spool = Spool(tmp_path)
    spool.prepare()
    return spool.pin(checkpoint_at(make_checkpoint(tmp_path, 5)))


def job(pinned: Snapshot) -> dict[str, Any]:
    upload = Upload("checkpoint-a", ("step-5",), {"global_step": 5})
    return {
        "op": "upload",
        "run": asdict(Run("a", "p")),
        "snapshot": str(pinned.directory),
        "upload": json.loads(json.dumps(asdict(upload))),
    }


def answers(store: FakeStore, asked: dict[str, Any]) -> list[dict[str, Any]]:
    told = io.StringIO()
    Publisher(store, Answers(told)).serve(asked)
    return [json.loads(line) for line in told.getvalue().splitlines()]


def test_a_log_in_is_answered_with_the_entity() -> None:
    found = answers(FakeStore(), {"op": "check", "run": asdict(Run("a", "p"))})

    assert found == [{"event": "done", "run": {"run_id": "a", "project": "p", "entity": "me"}}]


def test_an_upload_is_put_attached_and_measured_in_this_order(pinned: Snapshot) -> None:
    store = FakeStore()

    (answer,) = answers(store, job(pinned))

    assert store.calls == ["check", "put", "attach", "measure", "versions"]
    assert answer["event"] == "done"
    assert answer["version"]["qualified"] == "me/p/checkpoint-a:v0"
    assert answer["attached"]
    assert store.attached == Run("a", "p", "me")
    assert (store.measured["step"], store.measured["bytes"]) == (5, pinned.bytes)


def holding_latest(step: int, **ours: object) -> Version:
    metadata = {"ckptsync": {"run": "a", "step": step, **ours}}
    return Version("me/p/checkpoint-a:v7", "checkpoint-a", "v7", ("latest",), 1, 1, "d", 0.0, metadata)


@pytest.mark.parametrize(
    ("holder", "asked", "stays"),
    [
        (holding_latest(6), {}, True),
        (holding_latest(5), {}, False),
        (holding_latest(4), {}, False),
        (holding_latest(4, attempt=3), {}, False),
        (holding_latest(6, attempt=3), {}, True),
        (holding_latest(6), {"own": "v7"}, False),
        (holding_latest(6), {"own": "v6"}, True),
        (holding_latest(6), {"back": 0}, False),
        (holding_latest(6, attempt=2), {"back": 2}, False),
        (holding_latest(6, attempt=3), {"back": 2}, True),
        (holding_latest(6, run="b"), {}, False),
    ],
    ids=[
        "later",
        "the same step",
        "earlier",
        "earlier attempt",
        "later, numbered",
        "own",
        "not own",
        "went back",
        "from there",
        "later than that",
        "other run",
    ],
)
def test_latest_stays_with_a_version_that_another_folder_saved_later(
    pinned: Snapshot, holder: Version, asked: dict[str, Any], stays: bool
) -> None:
    store = FakeStore()
    store.holder = holder

    (answer,) = answers(store, job(pinned) | asked)

    assert store.put_as is not None
    assert store.put_as.latest == ("v7" if stays else None)
    assert answer["later"] == (f"checkpoint-a:v7, step {holder.step}" if stays else None)


def test_bytes_that_the_store_has_as_another_runs_version_are_not_durable(pinned: Snapshot) -> None:
    store = FakeStore()
    store.returned = holding_latest(5, run="b")

    (answer,) = answers(store, job(pinned))

    assert (answer["event"], answer["error"]) == ("failed", "PermanentStoreError")
    assert answer["message"].startswith("checkpoint-a:v7 has the same bytes and is a checkpoint of run b")
    assert store.attached is None


def test_an_error_of_the_file_system_is_transient(pinned: Snapshot) -> None:
    store = FakeStore(put=OSError(errno.EIO, "injected: I/O error"))

    (answer,) = answers(store, job(pinned))

    assert answer["error"] == "TransientStoreError"
    assert "injected: I/O error" in answer["message"]


@pytest.mark.parametrize("method", ["check", "put", "attach"])
@pytest.mark.parametrize(
    "error",
    [
        TransientStoreError("injected: away"),
        PermanentStoreError("injected: quota", hint="Buy more."),
        SnapshotChangedError("injected: rewritten"),
    ],
)
def test_an_error_of_ours_is_reported_as_what_it_is(pinned: Snapshot, method: str, error: CkptsyncError) -> None:
    (answer,) = answers(FakeStore(**{method: error}), job(pinned))

    assert answer == {
        "event": "failed",
        "error": type(error).__name__,
        "message": str(error),
        "hint": error.hint,
        "retry_after": 0.0,
    }


def test_a_bug_is_an_answer_too(pinned: Snapshot) -> None:
    (answer,) = answers(FakeStore(put=ZeroDivisionError("injected: bug")), job(pinned))

    assert (answer["event"], answer["error"]) == ("failed", "CkptsyncError")
    assert answer["message"] == "ZeroDivisionError: injected: bug"


def test_metrics_that_cannot_be_logged_do_not_undo_an_upload(pinned: Snapshot) -> None:
    (answer,) = answers(FakeStore(measure=TransientStoreError("injected: away")), job(pinned))

    assert answer["event"] == "done"


def test_a_snapshot_that_is_gone_is_told(pinned: Snapshot, tmp_path: Path) -> None:
    (answer,) = answers(FakeStore(), job(pinned) | {"snapshot": str(tmp_path / "missing")})

    assert (answer["event"], answer["error"]) == ("failed", "IntegrityError")


def test_a_long_upload_gives_signs_of_life_and_none_after_its_answer(pinned: Snapshot) -> None:
    store = FakeStore()
    store.seconds = 1.3

    *lines, answer = answers(store, job(pinned))

    assert answer["event"] == "done"
    assert [line["event"] for line in lines] == ["progress"]
    assert lines[0].keys() == {"event", "stage", "done", "total", "moved"}
    assert (lines[0]["stage"], lines[0]["total"]) == ("upload", 10)
    assert 1 <= lines[0]["done"] <= 10


def test_a_save_that_continues_the_holder_of_latest_counts_on_from_its_attempt(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.prepare()
    made = make_checkpoint(tmp_path, 9)
    state = json.loads((made / "trainer_state.json").read_text())
    (made / "trainer_state.json").write_text(json.dumps(state | {"log_history": [{"step": 3}, {"step": 9}]}))
    pinned = spool.pin(checkpoint_at(made), attempt=1)
    store = FakeStore()
    digest = rows_digest(made, 1)
    store.holder = holding_latest(3, attempt=4, rows=1, rows_from=3, rows_digest=digest)
    asked = {**job(pinned), "upload": {"name": "checkpoint-a", "aliases": [], "metadata": {"ckptsync": {"attempt": 1}}}}

    (answer,) = answers(store, asked)
    (other,) = answers(store, asked | {"own": "v7"})
    store.holder = holding_latest(3, attempt=4, rows=1, rows_from=3, rows_digest="of another history")
    (diverged,) = answers(store, asked)

    assert store.put_as is not None
    assert (answer["later"], answer["attempt"], other["attempt"]) == (None, 4, 4)
    assert diverged["later"] == "checkpoint-a:v7, step 3"


def test_what_was_just_uploaded_is_not_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore()
    gone: list[str] = []
    choices = [Choice(holding_latest(3), ()), Choice(VERSION, ())]
    monkeypatch.setattr(retention, "plan", lambda *_: choices)

    def sweep(_: object, going: list[Choice]) -> list[Version]:
        gone.extend(each.version.version for each in going)
        return []

    monkeypatch.setattr(retention, "sweep", sweep)

    asked = {"op": "prune", "run": asdict(Run("a", "p")), "name": "checkpoint-a", "policy": asdict(Retention(last=1))}
    answers(store, asked | {"uploaded": "v0"})

    assert gone == ["v7"]
