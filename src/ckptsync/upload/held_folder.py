"""The output folder that a watcher holds: its lock, and whether it is still the same folder. Knows nothing of checkpoints."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ckptsync import locks
from ckptsync.checkpoint import Run
from ckptsync.errors import CkptsyncError, ConfigurationError, LockedError
from ckptsync.upload.spool import Spool


class HeldFolder:
    """`.ckptsync` below one output folder, held by at most one watcher."""

    def __init__(self, spool: Spool, run: Run) -> None:
        self._spool = spool
        self._run = run
        self._lock = locks.FolderLock(spool.lock_path, of=spool.output_dir)
        self._identity: tuple[int, int] | None = None
        self.queued: list[str] = []
        """The queued checkpoints, as long as the folder is there to say so."""
        self._lost: list[str] = []

    @property
    def locks_work(self) -> bool:
        """Whether the file system has flock."""
        return self._lock.works

    @property
    def replaced(self) -> bool:
        """Whether another folder stands in its place: deleted and made again, or reached by a link that was moved."""
        return self._identity not in (None, _identity(self._spool.root))

    @property
    def gone(self) -> bool:
        """Whether nothing stands in its place any more."""
        return self._identity is not None and _identity(self._spool.root) is None

    def acquire(self) -> None:
        """Make the folder and hold it. Raises LockedError, naming the holder."""
        self._spool.make()
        self._lock = locks.FolderLock(self._spool.lock_path, of=self._spool.output_dir)
        self._lock.acquire(f"ckptsync, pid {os.getpid()}, run {self._run}")
        self._identity = _identity(self._spool.root)

    def note_queue(self) -> None:
        """Remember what is queued: a program may move the folder away with it."""
        if not self.gone:
            self.queued = [checkpoint_of(name) for name in self._spool.waiting()]

    def require_queue(self) -> None:
        """Raise where the folder went away with checkpoints that are not durable."""
        if lost := self.queued if self.gone else self._lost:
            raise CkptsyncError(
                f"{self._spool.output_dir} was moved or deleted with {', '.join(lost)} not durable",
                hint="Put it back, then start the same command again.",
            )

    def release(self) -> None:
        """Hold it no longer."""
        self._lost = self.queued if self.gone else []
        self._lock.release()
        self._identity = None

    @contextlib.contextmanager
    def writing(self, hint: str) -> Iterator[None]:
        """Tell a folder that can't be written to from a failure of ours."""
        try:
            yield
        except OSError as error:
            raise ConfigurationError(f"{self._spool.root} cannot be written to: {error.strerror}", hint=hint) from error


def require_watched_for(run: Run, output_dir: Path) -> None:
    """Raise LockedError if another process watches the folder for another run: what it uploads would not be this run's."""
    holder = locks.FolderLock(Spool(output_dir).lock_path, of=output_dir).holder or ""
    found = re.search(r"\brun (?:[^\s,]*/)?([^\s,/]+)", holder)
    if found and found[1] != run.run_id:
        raise LockedError(
            f"{output_dir} is already watched by {holder}, not for run {run.run_id}",
            hint=f"End that one, or give --run-id {found[1]}.",
        )


def checkpoint_of(snapshot: str) -> str:
    """The checkpoint that a snapshot's name names."""
    return snapshot.partition(".")[0]


def _identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode, None where there is no such folder."""
    try:
        status = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino
