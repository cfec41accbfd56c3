"""flocks between processes: one watcher per output folder, and one writer of a shared file at a time.

The kernel releases them with the process, however that ends, so no lock is ever stale.
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
    """Let one process at a time into the block, by an flock that lasts as long. Where there are no locks it goes without."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class WatcherLock:
    """An flock on a file that says who holds it. The kernel releases it with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self, owner: str) -> None:
        """Take the lock or raise LockedError with the words of the one who holds it."""
        file = self.path.open("a+", encoding="utf-8")
        while not _lock(file, fcntl.LOCK_EX):
            if not _lock(file, fcntl.LOCK_SH):
                file.seek(0)
                holder = file.read().strip() or "another process"
                file.close()
                raise LockedError(f"{self.path.parent.parent} is already watched by {holder}")
            # Only those who ask for the holder have it, each for a moment.
            fcntl.flock(file, fcntl.LOCK_UN)
        file.seek(0)
        file.truncate()
        file.write(owner + "\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let the next one have it. The file stays: removing it would let two processes lock two different files."""
        if self._file:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    @property
    def holder(self) -> str | None:
        """Who holds it at this moment, or None when it is free."""
        try:
            with self.path.open(encoding="utf-8") as file:
                return None if _lock(file, fcntl.LOCK_SH) else file.read().strip() or "another process"
        except OSError:
            return None


def _lock(file: IO[str], kind: int) -> bool:
    """Take that kind of lock if it is free at this moment."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
