"""Pins a checkpoint's files so that rotation can't take them away: reflink, else hard link, else copy.

Writes only below the folder that it is given. A hard link keeps a file that is deleted, but not one that is rewritten in place
(torch.save and JSON keep the inode): the upload asks `durable.unchanged` after hashing and again at its end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ckptsync import durable
from ckptsync.checkpoint import Checkpoint, File, Rows, Snapshot, TrainingState
from ckptsync.errors import IntegrityError, SnapshotChangedError

_FICLONE = 0x40049409
"""ioctl that shares the blocks of another file (linux/fs.h): btrfs, XFS with reflink, bcachefs. ext4 answers EOPNOTSUPP."""

_PIECE = 8 * 2**20
"""Bytes that are copied between two signs of life."""

_NO_LINK_HERE = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def pin(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    sequence: int,
    run_id: str | None = None,
    attempt: int | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Snapshot:
    """Pin every file of a checkpoint below `folder`, which must not exist, and write snapshot.json beside them.

    The folder appears under its name in one step, when all is in it and durable. Raises SnapshotChangedError when a file
    vanished or changed meanwhile: a normal event where the Trainer rotates or saves the same step again. `alive` is called again
    and again while files have to be copied, which can take long.
    """
    staging = durable.temporary_for(folder)
    content = staging / "files"
    # Nothing of it if the folder is gone: a program that deletes and makes its output folder must find none.
    staging.mkdir()
    try:
        content.mkdir()
        pinned_by = _pin_files(checkpoint, content, alive)
        snapshot = Snapshot(
            directory=folder,
            checkpoint=checkpoint.name,
            step=checkpoint.step,
            fingerprint=checkpoint.fingerprint,
            saved_at=checkpoint.saved_at,
            layout=checkpoint.verdict.layout,
            resumable=checkpoint.verdict.resumable,
            pinned_by=pinned_by,
            sequence=sequence,
            files=checkpoint.files,
            state=checkpoint.verdict.state,
            world_size=checkpoint.verdict.world_size,
            run_id=run_id,
            attempt=attempt,
        )
        _require_unchanged(checkpoint.files, checkpoint.path, content)
        durable.write_json(staging / "snapshot.json", to_json(snapshot))
        durable.rename(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return snapshot


def cheapest_way(folder: Path) -> str:
    """How files would be pinned in a folder that may be written to: reflink, link or copy."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=durable.TEMPORARY) as trial:
        source = Path(trial, "source")
        source.write_bytes(b"x")
        for name, way in (("reflink", _reflink), ("link", _link)):
            try:
                way(source, Path(trial, name))
            except OSError:
                continue
            return name
    return "copy"


def leave_cache(snapshot: Snapshot) -> None:
    """Give back the memory that the pinned files take as disk cache: it is the training's data set that is read again.

    To be called when nobody reads them any more. What is not on the disk yet stays (posix_fadvise(2)).
    """
    for file in snapshot.files:
        with contextlib.suppress(OSError, AttributeError):
            descriptor = os.open(snapshot.content / file.path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _pin_files(checkpoint: Checkpoint, content: Path, alive: Callable[[], None]) -> str:
    """Pin file by file with the cheapest way that works here, and return its name. A way that failed once is not tried again."""
    ways: list[tuple[str, Callable[[Path, Path], None]]] = [
        ("reflink", partial(_beside, alive, _reflink)),
        ("link", _link),
        ("copy", partial(_copy, alive=alive)),
    ]
    for folder in sorted({folder for file in checkpoint.files for folder in Path(file.path).parents[:-1]}):
        (content / folder).mkdir()
    for file in checkpoint.files:
        source, target = checkpoint.path / file.path, content / file.path
        while True:
            try:
                ways[0][1](source, target)
                break
            except FileNotFoundError as error:
                raise SnapshotChangedError(f"{source} vanished while it was pinned") from error
            except OSError as error:
                target.unlink(missing_ok=True)
                if len(ways) == 1 or error.errno not in _NO_LINK_HERE | {errno.ENOTTY}:
                    raise
                ways.pop(0)
    for path, _, _ in os.walk(content):
        durable.sync_folder(Path(path))
    return ways[0][0]


def _beside(alive: Callable[[], None], way: Callable[[Path, Path], None], source: Path, target: Path) -> None:
    """Do it in a thread, and show life meanwhile: a reflink waits until the file is on the disk."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            way(source, target)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        thread.join(1.0)
        alive()
    if failed:
        raise failed[0]


def _reflink(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        status = os.fstat(reader.fileno())
        os.fchmod(writer.fileno(), stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _link(source: Path, target: Path) -> None:
    os.link(source, target, follow_symlinks=False)


def _copy(source: Path, target: Path, *, alive: Callable[[], None]) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        while piece := reader.read(_PIECE):
            writer.write(piece)
            alive()
        status = os.fstat(reader.fileno())
        os.fchmod(writer.fileno(), stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _require_unchanged(files: Iterable[File], *folders: Path) -> None:
    for file in files:
        for folder in folders:
            try:
                same = durable.matches(file, folder / file.path)
            except OSError:
                same = False
            if not same:
                raise SnapshotChangedError(f"{folder / file.path} changed while it was pinned")


def to_json(snapshot: Snapshot) -> dict[str, Any]:
    """The content of snapshot.json: everything but where it lies."""
    value = asdict(snapshot)
    del value["directory"]
    return {"version": 1, **value}


def load(directory: Path) -> Snapshot:
    """Read a pinned snapshot back. Raises IntegrityError when snapshot.json is not one, OSError when it can't be read now."""
    value = durable.load_json(directory / "snapshot.json")
    try:
        if value is None or value.pop("version") != 1:
            raise ValueError("not a snapshot of this version")
        value["files"] = tuple(File(**file) for file in value["files"])
        state = value.get("state")
        value["state"] = TrainingState(**{**state, "rows": Rows(**state.get("rows", {}))}) if state else None
        return Snapshot(directory=directory, **value)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{directory}: snapshot.json cannot be read: {error}",
            hint="Move the folder away; its checkpoint is pinned again.",
        ) from error
