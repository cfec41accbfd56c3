"""The output folder that a watcher holds: its lock, and whether it is still the same folder. Knows nothing of checkpoints."""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ckptsync import locks
from ckptsync.checkpoint import Run, step_of
from ckptsync.errors import CkptsyncError, ConfigurationError, LockedError
from ckptsync.upload.spool import Spool

log = logging.getLogger(__name__)

BACK_HINT = "Put it back or mount it again, then start the same command again."


class Presence(enum.Enum):
    """Where the folder that a watcher took is now: in its place, nowhere, or another one is in its place."""

    HERE = "here"
    GONE = "gone"
    REPLACED = "replaced"


class HeldFolder:
    """`.ckptsync` below one output folder, held by at most one watcher."""

    def __init__(self, spool: Spool, run: Run) -> None:
        self._spool = spool
        self._run = run
        self._lock = locks.FolderLock(spool.lock_path, of=spool.output_dir)
        self._identity: tuple[int, int] | None = None
        self._away = False

    @property
    def locks_work(self) -> bool:
        """Whether the file system has flock."""
        return self._lock.works

    @property
    def presence(self) -> Presence:
        """Whether the folder that was taken last is still there: it may be moved, deleted and made again, or unmounted.

        Raises OSError where the file system can't tell.
        """
        if _identity(self._spool.output_dir) is None:
            return Presence.GONE
        return Presence.HERE if self._identity in (None, _identity(self._spool.root)) else Presence.REPLACED

    @property
    def undurable(self) -> list[str]:
        """The queued and parked checkpoints, by step."""
        return sorted({checkpoint_of(name) for name in list(self._spool.undurable)}, key=lambda name: step_of(name) or 0)

    def acquire(self) -> None:
        """Make the folder and hold it. Raises LockedError, naming the holder."""
        self._spool.make()
        self._lock = locks.FolderLock(self._spool.lock_path, of=self._spool.output_dir)
        self._lock.acquire(f"ckptsync, pid {os.getpid()}, run {self._run}")
        self._identity = _identity(self._spool.root)

    def note_away(self, presence: Presence) -> None:
        """Warn that it is not there, once, and say what follows."""
        if self._away:
            return
        self._away = True
        if presence is Presence.GONE:
            log.warning("%s is gone: nothing is uploaded until it is back%s", self._spool.output_dir, self._loss())
        else:
            what = "the new folder is followed once it holds a checkpoint"
            log.warning("%s was replaced: %s%s", self._spool.output_dir, what, self._loss())

    def note_replaced(self) -> None:
        """Say that another folder is followed from now on: a warning where none was given before."""
        level, loss = (logging.INFO, "") if self._away else (logging.WARNING, self._loss())
        log.log(level, "%s was replaced: following the new folder%s", self._spool.output_dir, loss)
        self._away = False

    def note_back(self) -> bool:
        """Say that it is there again, once. Whether it was away."""
        was_away, self._away = self._away, False
        if was_away:
            log.info("%s is back", self._spool.output_dir)
        return was_away

    def _loss(self) -> str:
        return f"; not durable: {', '.join(self.undurable)}" if self.undurable else ""

    def require_queue(self) -> None:
        """Raise where the folder went away with checkpoints that are not durable."""
        if (lost := self.undurable) and self.presence is not Presence.HERE:
            raise CkptsyncError(
                f"{self._spool.output_dir} was moved or deleted with {', '.join(lost)} not durable", hint=BACK_HINT
            )

    def require_here(self) -> None:
        """Raise where the folder is not there to be scanned."""
        if self.presence is not Presence.HERE:
            how = "is gone" if self.presence is Presence.GONE else "was replaced by a folder without checkpoints"
            raise CkptsyncError(
                f"{self._spool.output_dir} {how}: what was saved in it after the last scan is not durable", hint=BACK_HINT
            )

    def release(self) -> None:
        """Hold it no longer."""
        self._lock.release()

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
