"""Pins: what they survive, what they notice, and how they fall back."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from ckptsync import durable, layouts
from ckptsync.checkpoint import Checkpoint, Snapshot
from ckptsync.errors import IntegrityError, SnapshotChangedError
from ckptsync.upload import snapshot
from tests.checkpoints import checkpoint_at, make_checkpoint

PIN_AS_ANOTHER_USER = """
import os, sys
from pathlib import Path
from ckptsync import durable, layouts
from ckptsync.upload import snapshot
from ckptsync.checkpoint import Checkpoint

# After the imports: that user may not be able to read this Python.
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
folder = Path(sys.argv[1])
pinned = snapshot.pin(Checkpoint(folder, 5, layouts.inspect(folder)), Path(sys.argv[2]), sequence=1)
print(pinned.pinned_by, durable.unchanged(pinned.content, pinned.files))
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return checkpoint_at(make_checkpoint(tmp_path / "out", 5))


def pin(checkpoint: Checkpoint, spool: Path) -> Snapshot:
    return snapshot.pin(checkpoint, spool / "checkpoint-5.print", sequence=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pin_holds_every_byte_and_costs_none_and_nothing_is_written_to_the_checkpoint(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    before = checkpoint.path.stat().st_mtime_ns, layouts.list_files(checkpoint.path)

    pinned = pin(checkpoint, tmp_path)

    assert contents(pinned.content) == contents(checkpoint.path)
    assert (checkpoint.path.stat().st_mtime_ns, layouts.list_files(checkpoint.path)) == before
    assert pinned.pinned_by in ("link", "reflink")
    assert snapshot.load(pinned.directory) == pinned


def test_a_pin_survives_the_rotation_of_its_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    before = contents(checkpoint.path)
    pinned = pin(checkpoint, tmp_path)

    shutil.rmtree(checkpoint.path)

    assert durable.unchanged(pinned.content, pinned.files)
    assert contents(pinned.content) == before


def test_a_pin_notices_that_the_trainer_rewrote_a_file_in_place(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pinned = pin(checkpoint, tmp_path)
    if pinned.pinned_by == "reflink":
        pytest.skip("a reflink does not change with its source")

    make_checkpoint(tmp_path / "out", 5, content="again", saved_at=2_000_000_000)

    assert not durable.unchanged(pinned.content, pinned.files)


def test_a_pin_notices_a_missing_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pinned = pin(checkpoint, tmp_path)

    (pinned.content / "optimizer.pt").unlink()

    assert not durable.unchanged(pinned.content, pinned.files)


def test_a_file_that_vanished_before_it_was_pinned_leaves_no_pin(checkpoint: Checkpoint, tmp_path: Path) -> None:
    spool = durable.make_folder(tmp_path / "spool")
    (checkpoint.path / "optimizer.pt").unlink()

    with pytest.raises(SnapshotChangedError, match=r"optimizer\.pt vanished"):
        pin(checkpoint, spool)

    assert list(spool.iterdir()) == []


def test_a_file_that_changed_after_the_look_leaves_no_pin(checkpoint: Checkpoint, tmp_path: Path) -> None:
    spool = durable.make_folder(tmp_path / "spool")
    with (checkpoint.path / "optimizer.pt").open("ab") as file:
        file.write(b"x")

    with pytest.raises(SnapshotChangedError, match=r"optimizer\.pt changed"):
        pin(checkpoint, spool)

    assert list(spool.iterdir()) == []


def test_a_pin_taken_while_the_folder_is_removed_or_rewritten_is_whole_or_not_there(tmp_path: Path) -> None:
    outcomes = set()
    for number in range(40):
        output_dir = tmp_path / f"out-{number}"
        checkpoint = checkpoint_at(make_checkpoint(output_dir, 5))
        before = contents(checkpoint.path)
        spool = durable.make_folder(output_dir / "spool")
        remover = threading.Thread(target=shutil.rmtree, args=(checkpoint.path,), kwargs={"ignore_errors": True})

        remover.start()
        try:
            pinned = pin(checkpoint, spool)
        except SnapshotChangedError:
            outcomes.add("changed")
            assert list(spool.iterdir()) == []
        else:
            outcomes.add("pinned")
            assert contents(pinned.content) == before
        remover.join()

    assert outcomes <= {"changed", "pinned"}


def test_where_no_link_can_lead_a_pin_is_a_copy_with_the_same_times(checkpoint: Checkpoint, other_file_system: Path) -> None:
    pinned = pin(checkpoint, other_file_system)

    assert pinned.pinned_by == "copy"
    assert contents(pinned.content) == contents(checkpoint.path)
    assert durable.unchanged(pinned.content, pinned.files)


def test_a_copy_is_for_the_same_people_as_the_file(checkpoint: Checkpoint, other_file_system: Path) -> None:
    (checkpoint.path / "model.safetensors").chmod(0o600)

    pinned = pin(checkpoint, other_file_system)

    assert pinned.pinned_by == "copy"
    assert stat.S_IMODE((pinned.content / "model.safetensors").stat().st_mode) == 0o600


def test_a_copy_does_not_change_with_its_checkpoint(checkpoint: Checkpoint, other_file_system: Path, tmp_path: Path) -> None:
    before = contents(checkpoint.path)
    pinned = pin(checkpoint, other_file_system)

    make_checkpoint(tmp_path / "out", 5, content="again", saved_at=2_000_000_000)

    assert durable.unchanged(pinned.content, pinned.files)
    assert contents(pinned.content) == before


@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become another user: the fall-back for others' files was not checked"
)
def test_files_of_another_user_that_the_kernel_lets_nobody_link_are_copied() -> None:
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "1":
        pytest.skip("fs.protected_hardlinks is off here")
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        folder = make_checkpoint(Path(root) / "out", 5)
        spool = Path(root) / "spool"
        spool.mkdir()
        os.chown(spool, 65534, 65534)

        outcome = subprocess.run(
            [sys.executable, "-c", PIN_AS_ANOTHER_USER, str(folder), str(spool / "checkpoint-5.print")],
            capture_output=True,
            text=True,
            check=False,
        )

        assert outcome.stdout.split() == ["copy", "True"], outcome.stderr


def test_a_pin_in_subfolders_keeps_them(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "out", 5)
    (folder / "extra" / "deep").mkdir(parents=True)
    (folder / "extra" / "deep" / "file.txt").write_text("x")
    os.utime(folder / "trainer_state.json")

    pinned = pin(checkpoint_at(folder), tmp_path)

    assert (pinned.content / "extra" / "deep" / "file.txt").read_text() == "x"


def test_a_file_name_that_is_no_utf_8_is_pinned_and_read_back(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "out", 5)
    (folder / os.fsdecode(b"caf\xe9.dat")).write_text("x")
    os.utime(folder / "trainer_state.json")

    reloaded = snapshot.load(pin(checkpoint_at(folder), tmp_path).directory)

    assert durable.unchanged(reloaded.content, reloaded.files)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"files": None},
        {"files": [{"path": "x"}]},
        {"state": [1]},
        {"of_a_later_version": 1},
    ],
)
def test_a_snapshot_that_this_version_cannot_read_is_told(
    checkpoint: Checkpoint, tmp_path: Path, change: dict[str, object]
) -> None:
    path = pin(checkpoint, tmp_path).directory / "snapshot.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    with pytest.raises(IntegrityError, match=r"snapshot\.json cannot be read"):
        snapshot.load(path.parent)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 1}'])
def test_half_a_snapshot_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "snapshot.json").write_text(content)

    with pytest.raises(IntegrityError):
        snapshot.load(tmp_path)
