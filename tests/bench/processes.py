"""Resource use of a process tree, from /proc: processor time, memory, bytes written. Sampled, since processes end."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

TICK = 1 / os.sysconf("SC_CLK_TCK")
INTERVAL = 0.05


def tree(pid: int) -> list[int]:
    """A process and all its live descendants."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def seconds(pid: int) -> float:
    """Processor time of one process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def memory(pid: int, name: str = "VmRSS") -> float:
    """MB of one process: VmRSS, or RssAnon, which excludes mapped files (they are in the page cache anyway)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def _written(pid: int) -> int:
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    return 0


class Sampled:
    """Over a block: bytes written to disk by every process that was in the tree, and the peak of their own memory."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak = 0.0
        self.resident = 0.0
        self._bytes: dict[int, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    @property
    def written(self) -> int:
        """Bytes written to disk, as the kernel counts them."""
        return sum(self._bytes.values())

    def _run(self) -> None:
        while True:
            self._sample()
            if self._over.wait(INTERVAL):
                break
        self._sample()

    def _sample(self) -> None:
        private = resident = 0.0
        for pid in tree(self.pid):
            with contextlib.suppress(OSError):
                self._bytes[pid] = max(self._bytes.get(pid, 0), _written(pid))
                private += memory(pid, "RssAnon")
                resident += memory(pid)
        self.peak = max(self.peak, private)
        self.resident = max(self.resident, resident)


@contextlib.contextmanager
def sampled(pid: int) -> Iterator[Sampled]:
    """Sample the tree for as long as the block runs."""
    with Sampled(pid) as each:
        yield each
