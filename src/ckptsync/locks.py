"""File locks (flock): one watcher per output folder, and one writer of a shared file at a time.

The kernel releases a lock when its process ends, however that happens: there are no stale locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ckptsync.errors import LockedError


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Run the block in one process at a time. On a file system without locks it runs unprotected."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class WatcherLock:
    """The lock of an output folder; the lock file names its holder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self, owner: str) -> None:
        """Take the lock, or raise LockedError naming the holder. `owner` describes this process to others."""
        file = self.path.open("a+", encoding="utf-8")
        while not _lock(file, fcntl.LOCK_EX):
            if not _lock(file, fcntl.LOCK_SH):
                file.seek(0)
                holder = file.read().strip() or "another process"
                file.close()
                raise LockedError(f"{self.path.parent.parent} is already watched by {holder}")
            # Free but for a moment: only readers of `holder` have a shared lock on it.
            fcntl.flock(file, fcntl.LOCK_UN)
        file.seek(0)
        file.truncate()
        file.write(owner + "\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Release the lock. The file stays: if it were removed, two processes could lock two different files."""
        if self._file:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    @property
    def holder(self) -> str | None:
        """Who holds the lock at this moment; None if it is free."""
        try:
            with self.path.open(encoding="utf-8") as file:
                return None if _lock(file, fcntl.LOCK_SH) else file.read().strip() or "another process"
        except OSError:
            return None


def _lock(file: IO[str], kind: int) -> bool:
    """Take this kind of lock (flock's LOCK_EX or LOCK_SH) without waiting; whether it was free."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
