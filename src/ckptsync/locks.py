"""File locks: one watcher per output folder, and one writer of a shared file at a time.

With flock the kernel releases a lock when its process ends, however that happens. Some file systems have none (Lustre without
`-o flock`, NFS without lockd): there a file that names the holder is the lock, and one whose process has ended is taken over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ckptsync import processes
from ckptsync.errors import LockedError
from ckptsync.regular_file import open_regular

Flock = Callable[[Any, int], None]

_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
"""What flock(2) and its emulations answer when somebody else holds the lock. Anything else means that there are no locks here."""


PATIENCE = 5.0
"""Seconds to wait for another writer of a small file. One that takes longer is stopped (SIGSTOP) or hangs (a dead lockd)."""


@contextlib.contextmanager
def exclusive(path: Path, *, patience: float = PATIENCE) -> Iterator[None]:
    """Run the block in one process at a time. It runs unprotected on a file system without locks, and after `patience` seconds.

    The training itself is among the callers: it must not hang because a watcher does.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    released = threading.Event()
    # A thread, since flock(2) itself hangs where NFS has no lockd to ask.
    locking = threading.Thread(target=_hold, args=(descriptor, patience, locked := threading.Event(), released), daemon=True)
    locking.start()
    locked.wait(patience + 1.0)
    try:
        yield
    finally:
        released.set()


def _hold(descriptor: int, patience: float, locked: threading.Event, released: threading.Event) -> None:
    """Lock a file within `patience` seconds, or don't, and close it when that is asked for."""
    try:
        _lock_within(descriptor, patience)
        locked.set()
        released.wait()
    finally:
        os.close(descriptor)


def _lock_within(descriptor: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                return
            time.sleep(0.01)
        else:
            return


def available(folder: Path) -> bool:
    """Whether files in this folder can be locked: tried on one that is deleted again. Raises OSError without write access."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


class FolderLock:
    """A lock of an output folder, a file that names its holder. `works` is false where the file system has no flock.

    `of` is the output folder, and `doing` says what the holder does with it: it is watched, or trained in.
    """

    def __init__(self, path: Path, flock: Flock = fcntl.flock, *, of: Path | None = None, doing: str = "watched") -> None:
        self.path = path
        self._folder = of or path.parent.parent
        self.doing = doing
        self.works = True
        self._flock = flock
        self._file: IO[str] | None = None
        self._owner_file: Path | None = None

    def acquire(self, owner: str) -> None:
        """Take the lock, or raise LockedError naming the holder. `owner` describes this process to others."""
        file = self.path.open("a+", encoding="utf-8")
        try:
            self._acquire(file)
        except LockedError:
            file.close()
            raise
        except OSError:
            self.works = False
            file.close()
            self._acquire_by_name(owner)
            file = self.path.open("a+", encoding="utf-8")
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
        if self._owner_file:
            self._owner_file.unlink(missing_ok=True)
            self._owner_file = None

    @property
    def holder(self) -> str | None:
        """Who holds the lock at this moment; None if it is free."""
        try:
            with open_regular(self.path) as file:
                free = self._lock(file, fcntl.LOCK_SH)
                return None if free else file.read().strip() or "another process"
        except ValueError:
            return None
        except OSError:
            return self._named_holder()

    def _acquire(self, file: IO[str]) -> None:
        while not self._lock(file, fcntl.LOCK_EX):
            if not self._lock(file, fcntl.LOCK_SH):
                file.seek(0)
                raise LockedError(f"{self._folder} is already {self.doing} by {file.read().strip() or 'another process'}")
            # Free but for a moment: only readers of `holder` have a shared lock on it.
            self._flock(file, fcntl.LOCK_UN)

    def _acquire_by_name(self, owner: str) -> None:
        named = self.path.with_name(f"{self.path.name}.owner")
        content = json.dumps({"owner": owner, **processes.identity(os.getpid())})
        for _ in range(2):
            try:
                descriptor = os.open(named, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                if holder := self._named_holder():
                    raise LockedError(
                        f"{self._folder} is already {self.doing} by {holder}",
                        hint=f"If that process ran on a machine that is gone, delete {named}.",
                    ) from None
                named.unlink(missing_ok=True)
                continue
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)
            self._owner_file = named
            return
        raise LockedError(f"{self._folder} is already {self.doing} by another process")

    def _named_holder(self) -> str | None:
        """Who stands in the owner file; None where there is none, or its process has ended, as seen from here."""
        try:
            with open_regular(self.path.with_name(f"{self.path.name}.owner")) as file:
                value = json.load(file)
            ended = processes.is_visible(value) and processes.living(value) is None
            return None if ended else f"{value['owner']}, on {value['host']}"
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return "another process"

    def _lock(self, file: IO[str], kind: int) -> bool:
        """Take this kind of lock (LOCK_EX or LOCK_SH) without waiting; whether it was free. Raises OSError without locks."""
        try:
            self._flock(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                return False
            raise
        return True
