"""The way back with a store of folders: which source, in which order, and what is never handed over."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ckptsync import record
from ckptsync.checkpoint import Run, Version
from ckptsync.errors import CkptsyncError, IntegrityError, NotFoundError, TransientStoreError, UsageError
from ckptsync.restore import resume, verification
from ckptsync.restore.resume import Resume
from ckptsync.restore.sources import before_restart, find_versions, order, pick
from ckptsync.restore.verification import check_download
from ckptsync.store.contract import Progress
from ckptsync.store.retrying import Patience
from ckptsync.trainer import marker
from ckptsync.upload.spool import Spool
from tests.checkpoints import checkpoint_at, make_checkpoint

RUN = Run("abc", "p", "me")
QUICK = Patience(first=0.001, longest=0.002, give_up_after=0.1)


class FolderStore:
    """Versions of `checkpoint-abc`, each a folder. `faults` has the errors of the next fetches by version, one a fetch."""

    id = "folders"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kept: list[Version] = []
        self.faults: dict[str, list[Exception]] = {}
        self.fetched: list[str] = []
        self.compared: list[str] = []
        self.stays_away = False
        """Whether nothing answers any more once a fetch has failed."""

    def keep(
        self, step: int, *, saved_at: float, resumable: bool = True, attempt: int | None = None, **changes: object
    ) -> Version:
        name = f"v{len(self.kept)}"
        folder = make_checkpoint(self.root / name, step, content=name, **changes)  # type: ignore[arg-type]
        size = sum(path.stat().st_size for path in folder.iterdir())
        metadata = {"ckptsync": {"step": step, "saved_at": saved_at, "resumable": resumable, "attempt": attempt}}
        version = Version(
            f"me/p/checkpoint-abc:{name}",
            "checkpoint-abc",
            name,
            (f"step-{step}",),
            size,
            7,
            f"digest-{name}",
            saved_at,
            metadata,
        )
        self.kept.insert(0, version)
        return version

    def versions(self, name: str) -> list[Version]:
        if self.stays_away and self.fetched:
            raise TransientStoreError("injected: away")
        return self.kept if name == "checkpoint-abc" else []

    def outputs(self, run: Run) -> list[Version]:
        raise NotFoundError(f"there is no run {run}")

    def fetch(self, version: Version, into: Path, *, progress: Progress) -> None:
        self.fetched.append(version.version)
        source = next((self.root / version.version).iterdir())
        for path in sorted(source.iterdir()):
            if not (into / path.name).exists():
                shutil.copyfile(path, into / path.name)
            if self.faults.get(version.version):
                raise self.faults[version.version].pop(0)

    def differing(self, version: Version, folder: Path, *, progress: Progress) -> list[str]:
        self.compared.append(version.version)
        if self.faults.get(version.version):
            raise self.faults[version.version].pop(0)
        source = next((self.root / version.version).iterdir())
        there = [path.name for path in source.iterdir() if (folder / path.name).exists()]
        return sorted(name for name in there if (source / name).read_bytes() != (folder / name).read_bytes())


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def resumed(store: FolderStore, output_dir: Path) -> Resume:
    return Resume(store, RUN, output_dir, progress=lambda _done, _total: None, patience=QUICK)  # type: ignore[arg-type]


def of_attempt(number: int, checkpoint: Path) -> None:
    """Mark a local checkpoint as the training itself does."""
    marker.write(checkpoint.parent, int(checkpoint.name.rpartition("-")[2]), world_size=1, attempt=number)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def torn(output_dir: Path) -> list[str]:
    return [path.name.rpartition("-")[0] for path in Spool(output_dir).torn()]


def test_into_an_empty_folder_comes_the_version_saved_last(resumed: Resume, store: FolderStore, output_dir: Path) -> None:
    store.keep(5, saved_at=1_000_000_005.0)
    store.keep(10, saved_at=1_000_000_010.0)

    placed = resumed.place()

    assert (placed.step, placed.path) == (10, output_dir / "checkpoint-10")
    assert str(placed.source) == "checkpoint-abc:v1"
    assert names(output_dir) == ["checkpoint-10"]
    assert list((output_dir / ".ckptsync" / "incoming").iterdir()) == []


def test_what_was_placed_counts_as_durable_and_keeps_the_time_of_its_save(
    resumed: Resume, store: FolderStore, output_dir: Path
) -> None:
    store.keep(5, saved_at=1_000_000_005.25)

    placed = resumed.place()

    checkpoint = checkpoint_at(placed.path)
    assert checkpoint.saved_at == 1_000_000_005.25
    assert Spool(output_dir).knows(f"{checkpoint.name}.{checkpoint.fingerprint}")
    newest = Spool(output_dir).receipts.newest()
    assert newest is not None
    assert (newest.step, newest.version, newest.artifact) == (5, "v0", "me/p/checkpoint-abc")


def test_a_version_whose_bytes_are_wrong_gives_way_to_the_one_before_and_both_are_named(
    resumed: Resume, store: FolderStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.keep(5, saved_at=1_000_000_005.0)
    store.keep(10, saved_at=1_000_000_010.0)
    store.faults["v1"] = [IntegrityError("injected: digest")]

    assert resumed.place().step == 5
    assert "checkpoint-abc:v1: injected: digest" in caplog.text


@pytest.mark.parametrize("missing", ["trainer_state.json", "optimizer.pt", "model.safetensors", "rng_state.pth"])
def test_a_torn_version_is_never_placed(resumed: Resume, store: FolderStore, output_dir: Path, missing: str) -> None:
    store.keep(5, saved_at=1_000_000_005.0)
    store.keep(10, saved_at=1_000_000_010.0, without=[missing])

    assert resumed.place().step == 5
    assert names(output_dir) == ["checkpoint-5"]
    assert list((output_dir / ".ckptsync" / "incoming").iterdir()) == []


def test_a_version_of_another_step_than_it_says_is_never_placed(resumed: Resume, store: FolderStore) -> None:
    version = store.keep(5, saved_at=1_000_000_005.0)
    store.kept[0] = replace(version, metadata={"ckptsync": {"step": 6, "saved_at": 1.0}})

    with pytest.raises(IntegrityError, match="tried checkpoint-abc:v0"):
        resumed.place()


def test_when_none_holds_nothing_is_placed(resumed: Resume, store: FolderStore, output_dir: Path) -> None:
    store.keep(5, saved_at=1_000_000_005.0, without=["optimizer.pt"])

    with pytest.raises(IntegrityError) as raised:
        resumed.place()

    assert raised.value.exit_code == 5
    assert names(output_dir) == []


def test_a_run_without_a_checkpoint_is_not_found(resumed: Resume) -> None:
    with pytest.raises(NotFoundError) as raised:
        resumed.place()

    assert raised.value.exit_code == 4


def test_a_whole_local_checkpoint_that_is_newer_needs_no_download(resumed: Resume, store: FolderStore, output_dir: Path) -> None:
    store.keep(5, saved_at=1_000_000_005.0)
    make_checkpoint(output_dir, 10, saved_at=1_000_000_010.0)

    placed = resumed.place()

    assert (placed.step, str(placed.source)) == (10, "local checkpoint-10")
    assert store.fetched == []


def test_a_torn_local_checkpoint_is_moved_away_never_deleted(resumed: Resume, store: FolderStore, output_dir: Path) -> None:
    store.keep(5, saved_at=1_000_000_005.0)
    make_checkpoint(output_dir, 10, saved_at=1_000_000_010.0, without=["trainer_state.json"])

    assert resumed.place().step == 5
    assert names(output_dir) == ["checkpoint-5"]
    assert torn(output_dir) == ["checkpoint-10"]


def test_two_that_are_moved_away_within_a_second_are_both_kept(resumed: Resume, store: FolderStore, output_dir: Path) -> None:
    store.keep(10, saved_at=2000.0, attempt=2)
    for _ in range(2):
        of_attempt(1, make_checkpoint(output_dir, 20, saved_at=1000.0))
        resumed.place()

    assert len(Spool(output_dir).torn()) == 2


def test_a_local_checkpoint_with_a_flipped_bit_is_found_before_it_is_handed_over(
    resumed: Resume, store: FolderStore, output_dir: Path
) -> None:
    store.keep(10, saved_at=1000.0)
    optimizer = make_checkpoint(output_dir, 20, size=300_000, saved_at=2000.0) / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    os.utime(optimizer, (2000.0, 2000.0))

    placed = resumed.place()

    assert placed.step == 10


def flip_a_bit(path: Path) -> None:
    """As a disk or its memory does: size and time stay."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_bit_that_flips_in_a_durable_checkpoint_where_no_format_has_a_checksum_is_found_by_the_version(
    resumed: Resume, store: FolderStore, output_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.keep(10, saved_at=1000.0)
    local = resumed.place().path
    flip_a_bit(local / "model.safetensors")

    placed = resumed.place()

    assert "skipping local checkpoint-10: model.safetensors changed on the disk since checkpoint-10 became" in caplog.text
    assert (placed.step, placed.source.local, store.fetched) == (10, None, ["v0", "v0"])
    assert torn(output_dir) == ["checkpoint-10"]


def test_a_durable_checkpoint_that_a_user_edited_is_theirs_and_one_that_nobody_can_compare_is_taken(
    resumed: Resume, store: FolderStore, output_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.keep(10, saved_at=1000.0)
    local = resumed.place().path
    store.faults["v0"] = [TransientStoreError("injected: away")] * 1000

    assert resumed.place().source.local is not None
    assert "checkpoint-10 was not compared with checkpoint-abc:v0" in caplog.text
    store.faults.clear()
    compared = len(store.compared)
    (local / "config.json").write_text('{"theirs": true}')
    assert resumed.place().source.local is not None
    assert len(store.compared) == compared


def test_a_higher_checkpoint_of_an_older_training_is_moved_away_and_a_lower_one_stays(
    resumed: Resume, store: FolderStore, output_dir: Path
) -> None:
    make_checkpoint(output_dir, 3, saved_at=1_000_000_003.0)
    of_attempt(1, make_checkpoint(output_dir, 900, saved_at=1_000_000_009.0))
    store.keep(5, saved_at=1_000_000_005.0, attempt=2)

    assert resumed.place().step == 5
    assert names(output_dir) == ["checkpoint-3", "checkpoint-5"]
    assert torn(output_dir) == ["checkpoint-900"]


def test_an_older_save_of_the_same_step_makes_room(resumed: Resume, store: FolderStore, output_dir: Path) -> None:
    of_attempt(1, make_checkpoint(output_dir, 5, content="old", saved_at=1_000_000_009.0))
    store.keep(5, saved_at=1_000_000_005.0, attempt=2)

    placed = resumed.place()

    assert b"v0" in (placed.path / "model.safetensors").read_bytes()
    assert torn(output_dir) == ["checkpoint-5"]


def test_a_connection_that_broke_is_tried_again_and_goes_on_where_it_was(resumed: Resume, store: FolderStore) -> None:
    store.keep(5, saved_at=1_000_000_005.0)
    store.faults["v0"] = [TransientStoreError("injected: away")] * 3

    assert resumed.place().step == 5
    assert store.fetched == ["v0"] * 4


def test_a_store_that_stays_away_keeps_what_has_come_for_the_next_time(
    resumed: Resume, store: FolderStore, output_dir: Path
) -> None:
    store.keep(5, saved_at=1_000_000_005.0)
    store.faults["v0"] = [TransientStoreError("injected: away")] * 100_000
    store.stays_away = True

    with pytest.raises(TransientStoreError) as raised:
        resumed.place()

    assert raised.value.exit_code == 6
    assert names(output_dir) == []
    assert names(output_dir / ".ckptsync" / "incoming" / "checkpoint-abc.v0") != []


def test_a_version_that_the_disk_cannot_hold_is_told_before_a_byte_is_asked_for(resumed: Resume, store: FolderStore) -> None:
    version = store.keep(5, saved_at=1_000_000_005.0)
    store.kept[0] = replace(version, bytes=2**62)

    with pytest.raises(CkptsyncError, match="free"):
        resumed.place()

    assert store.fetched == []


def test_a_named_version_is_the_only_one_that_is_tried(resumed: Resume, store: FolderStore) -> None:
    store.keep(5, saved_at=1_000_000_005.0)
    store.keep(10, saved_at=1_000_000_010.0)

    assert resumed.place("step-5").step == 5
    store.faults["v1"] = [IntegrityError("injected: digest")]
    with pytest.raises(IntegrityError):
        resumed.place("v1")


def test_an_unknown_alias_is_told_with_those_that_exist(store: FolderStore) -> None:
    store.keep(5, saved_at=1_000_000_005.0)

    with pytest.raises(NotFoundError) as raised:
        pick(store.kept, "best", RUN)

    assert raised.value.hint == "Known versions and aliases: step-5, v0."
    assert pick(store.kept, "v0", RUN) == pick(store.kept, "step-5", RUN)


def test_sources_come_in_the_order_of_saving_and_of_equals_the_local_one_first(store: FolderStore, output_dir: Path) -> None:
    for step, saved_at in ((5, 100.0), (6, 300.0), (4, 200.0), (7, 300.0)):
        store.keep(step, saved_at=saved_at)
    local = [checkpoint_at(make_checkpoint(output_dir, 6, saved_at=300.0))]

    found = [str(each) for each in order(local, store.kept)]

    assert found == [
        "checkpoint-abc:v3",
        "local checkpoint-6",
        "checkpoint-abc:v1",
        "checkpoint-abc:v0",
        "checkpoint-abc:v2",
    ]


def test_what_says_that_it_cannot_be_resumed_from_is_no_source(store: FolderStore) -> None:
    store.keep(5, saved_at=100.0, resumable=False)
    store.kept.append(Version("q:v9", "checkpoint-abc", "v9", ("final_model",), 1, 1, "d", 500.0))

    assert order([], store.kept) == []


def test_weights_alone_are_not_handed_over_even_when_nobody_said_so(store: FolderStore) -> None:
    version = store.keep(5, saved_at=100.0, without=["optimizer.pt", "scheduler.pt", "rng_state.pth"])

    with pytest.raises(IntegrityError, match="cannot be resumed from"):
        check_download(next((store.root / "v0").iterdir()), version)


def test_the_output_folder_has_to_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(UsageError, match="not a folder"):
        resume.require_output_dir(tmp_path / "file", create=True)
    with pytest.raises(UsageError, match="does not exist"):
        resume.require_output_dir(tmp_path / "missing", create=False)
    assert resume.require_output_dir(tmp_path / "a" / "b", create=True).is_dir()


def test_a_relative_output_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert resume.require_output_dir(Path("out"), create=True) == Path(os.path.realpath(tmp_path)) / "out"


def test_libraries_that_differ_are_told() -> None:
    version = Version("q:v0", "c", "v0", (), 1, 1, "d", 0.0, {"ckptsync": {"libraries": {"wandb": "0.0.1", "unknown": "1"}}})

    assert [each for each in verification.differences(version) if each.startswith("wandb was 0.0.1 and is ")] != []
    assert verification.differences(replace(version, metadata={"ckptsync": {"libraries": "hostile"}})) == []


def test_the_best_checkpoint_is_brought_too_and_never_passes_for_the_newest(store: FolderStore, output_dir: Path) -> None:
    store.keep(4, saved_at=1000.0)
    store.keep(8, saved_at=2000.0, best="/old/machine/out/checkpoint-4")

    placed = Resume(store, RUN, output_dir, progress=lambda *_: None, patience=QUICK).place()  # type: ignore[arg-type]

    newest = Spool(output_dir).receipts.newest()
    assert placed.path.name == "checkpoint-8"
    assert (output_dir / "checkpoint-4" / "trainer_state.json").is_file()
    assert newest is not None
    assert newest.step == 8
    assert len(list(Spool(output_dir).receipts)) == 2


def test_a_best_checkpoint_that_the_store_lacks_is_told_and_stops_nothing(
    store: FolderStore, output_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.keep(8, saved_at=2000.0, best="/old/machine/out/checkpoint-4")

    placed = Resume(store, RUN, output_dir, progress=lambda *_: None, patience=QUICK).place()  # type: ignore[arg-type]

    assert placed.step == 8
    assert "the best checkpoint so far, checkpoint-4, is missing" in caplog.text


def test_a_best_checkpoint_that_is_here_under_another_path_is_told(
    store: FolderStore, output_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_checkpoint(output_dir, 4, saved_at=1000.0)
    store.keep(8, saved_at=2000.0, best="/old/machine/out/checkpoint-4")

    Resume(store, RUN, output_dir, progress=lambda *_: None, patience=QUICK).place()  # type: ignore[arg-type]

    assert f"the best checkpoint so far is {output_dir / 'checkpoint-4'}" in caplog.text
    assert store.fetched == ["v0"]


def test_a_later_attempt_comes_before_a_higher_step_of_an_earlier_one(store: FolderStore) -> None:
    store.keep(200, saved_at=900.0, attempt=1)
    store.keep(110, saved_at=100.0, attempt=2)

    assert [each.step for each in order([], store.kept)] == [110, 200]


def test_times_of_copying_decide_nothing(resumed: Resume, output_dir: Path) -> None:
    for step, saved_at in ((15, 3000.0), (30, 2000.0), (45, 1000.0)):
        make_checkpoint(output_dir, step, saved_at=saved_at)

    assert resumed.place().step == 45
    assert names(output_dir) == ["checkpoint-15", "checkpoint-30", "checkpoint-45"]


def test_a_restored_lower_checkpoint_does_not_beat_the_version_saved_last(
    resumed: Resume, store: FolderStore, output_dir: Path
) -> None:
    store.keep(45, saved_at=1000.0)
    make_checkpoint(output_dir, 15, saved_at=2000.0)

    assert resumed.place().step == 45


def test_rows_of_another_history_put_a_local_checkpoint_last(store: FolderStore, output_dir: Path) -> None:
    local = checkpoint_at(make_checkpoint(output_dir, 50))
    assert local.verdict.state is not None
    version = store.keep(45, saved_at=1000.0)
    ours = {**version.metadata["ckptsync"], "rows": 1, "rows_from": 50, "rows_digest": "of another training"}
    version = replace(version, metadata={"ckptsync": ours})

    assert [each.step for each in order([local], [version])] == [45, 50]
    assert [each.step for each in order([local], [version], prefix=lambda _path, _count: "of another training")] == [50, 45]


def test_a_version_without_an_attempt_belongs_to_the_newest_that_was_committed_before_it(store: FolderStore) -> None:
    store.keep(20, saved_at=300.0, attempt=2)
    store.keep(30, saved_at=200.0)

    assert [each.step for each in order([], store.kept)] == [30, 20]


def test_placing_notes_the_highest_attempt_of_all_versions_also_when_an_older_one_was_asked_for(
    resumed: Resume, store: FolderStore, output_dir: Path
) -> None:
    store.keep(10, saved_at=100.0, attempt=1)
    store.keep(20, saved_at=200.0, attempt=2)

    resumed.place("step-10")

    assert record.begin_attempt(output_dir).number == 3


def test_who_goes_back_by_choice_goes_on_from_there_until_something_newer_is_saved(
    resumed: Resume, store: FolderStore, output_dir: Path
) -> None:
    store.keep(8, saved_at=8.0, attempt=1)
    store.keep(16, saved_at=16.0, attempt=1)
    record.begin_attempt(output_dir)
    record.note_rollback(output_dir, 8)
    record.begin_attempt(output_dir, resumed_step=8)

    back = [each.step for each in resumed.sources(None)]
    store.keep(12, saved_at=12.0, attempt=2)
    further = [each.step for each in resumed.sources(None)]
    record.note_rollback(output_dir, None)

    assert back == [8]
    assert further == [12, 8]
    assert [each.step for each in resumed.sources(None)] == [12, 16, 8]


def test_one_restart_condemns_its_own_saves_and_no_durable_one(tmp_path: Path) -> None:
    durable_one, refused = (checkpoint_at(make_checkpoint(tmp_path, step)) for step in (20, 25))
    record.note_restarted(tmp_path, 1, f"{refused.name}.{refused.fingerprint}")
    for each in (durable_one, refused):
        of_attempt(1, each.path)
    spool = Spool(tmp_path)
    (tmp_path / ".ckptsync/receipts").mkdir()
    spool.receipts.path(f"{durable_one.name}.{durable_one.fingerprint}").write_text("{}")

    assert before_restart([durable_one, refused], spool) == [durable_one]


def test_a_version_of_another_run_that_shares_the_artifacts_name_is_not_resumed_from(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    mine = store.keep(4, saved_at=1000.0)
    other = store.keep(8, saved_at=2000.0)
    for version, run_id in ((mine, "abc"), (other, "abc.")):
        changed = replace(version, metadata={"ckptsync": {**version.ours, "run": run_id}})
        store.kept[store.kept.index(version)] = changed

    assert [each.step for each in find_versions(store, RUN)] == [4]  # type: ignore[arg-type]
