"""Dying at the n-th file event, in a process that can be spared: a fork of this one, or a program of its own.

Python's audit events come before the deed: dying at event n leaves the world as n - 1 deeds made it. They tell of opening for
writing, linking, renaming, removing, making and removing folders, truncating, and setting times; not of writing and of fsync.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PLACES = {  # for each event: which of its arguments are paths, and which a folder's descriptor
    "os.link": ((0, 2), (1, 3)),
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.truncate": ((0, None),),
    "os.utime": ((0, 3),),
}


class Counter:
    """An audit hook that counts the file events below a folder, and kills this process with SIGKILL at the given one."""

    def __init__(self, folder: Path, *, die_at: int | None = None, tally: Path | None = None) -> None:
        self.count = 0
        self._tally = os.open(tally, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if tally else None
        self._folder = str(folder) + "/"
        self._die_at = die_at
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_ours(event, arguments):
            return
        self.count += 1
        if self._tally is not None:
            os.write(self._tally, b".")
        if self.count == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_ours(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            writing = isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
            return writing and self._below(arguments[0], -1)
        places = _PLACES.get(event, ())
        return any(self._below(arguments[path], -1 if at is None else arguments[at]) for path, at in places)

    def _below(self, path: Any, descriptor: Any) -> bool:
        if isinstance(path, int):
            path, descriptor = str(Path(f"/proc/self/fd/{path}").readlink()), -1
        name = os.fsdecode(path)
        if not name.startswith("/") and isinstance(descriptor, int) and descriptor >= 0:
            name = str(Path(f"/proc/self/fd/{descriptor}").readlink() / name)
        return name.startswith(self._folder)


def count_events(deed: Callable[[], object], folder: Path) -> int:
    """How many file events below a folder a deed consists of. It is done in a fork."""
    reader, writer = os.pipe()

    def counted() -> None:
        counter = Counter(folder)
        deed()
        os.write(writer, str(counter.count).encode())

    try:
        assert in_fork(counted) == 0
        return int(os.read(reader, 20))
    finally:
        os.close(reader)
        os.close(writer)


def spread(events: int, most: int) -> list[int]:
    """At most so many numbers from 1 to `events`, evenly apart, the first and the last among them."""
    if events <= most:
        return list(range(1, events + 1))
    return sorted({1 + round(number * (events - 1) / (most - 1)) for number in range(most)})


def die_doing(deed: Callable[[], object], folder: Path, n: int) -> bool:
    """Do it in a fork that is killed at its n-th file event; False when it came to its end before."""

    def mortal() -> None:
        Counter(folder, die_at=n)
        deed()

    status = in_fork(mortal)
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def side_by_side(deeds: Sequence[Callable[[], object]], *, width: int = 4) -> None:
    """Do them in forks, a few at a time: each mostly waits. All have to come to their end."""
    for start in range(0, len(deeds), width):
        children = [fork(deed) for deed in deeds[start : start + width]]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert not any(statuses), statuses


def in_fork(deed: Callable[[], object]) -> int:
    """Do something in a child of this warm process. Returns its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(deed), 0)[1])


def fork(deed: Callable[[], object]) -> int:
    """Begin something in a child of this warm process, and return its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            deed()
            status = 0
        except BaseException as error:
            sys.stderr.write(f"in the fork: {type(error).__name__}: {error}\n")
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child
