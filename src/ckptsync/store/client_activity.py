"""Signs of life of the wandb client, which reports none itself: bytes counted by /proc and the kernel."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

SENT_STEP, READ_STEP = 64 * 2**10, 2**22
"""Bytes sent or read that count as progress. Fewer don't: the client's heartbeats and its log continue while an upload hangs."""


def sample() -> tuple[int, int]:
    """Bytes sent so far, and a number that grows while the client starts, sends, reads or hashes, and never otherwise."""
    read, sent = _client_bytes()
    return sent, _stepped(sent, SENT_STEP) + _stepped(read, READ_STEP) + _bytes_mapped()


def _stepped(count: int, step: int) -> int:
    return count // step * step


def _client_bytes() -> tuple[int, int]:
    """What wandb-core, a child of this process, has read and written so far, by /proc; 0 where there is no /proc.

    It reads for minutes without reporting anything: files hashed with XXH128 are hashed again with MD5, one after the other, and
    so are the parts of a file of 2 GiB and more (wandb 0.31, measured).
    """
    read = written = 0
    with contextlib.suppress(OSError, ValueError):
        for task in Path("/proc/self/task").iterdir():
            for child in (task / "children").read_text().split():
                counts = dict(line.split(": ") for line in Path(f"/proc/{child}/io").read_text().splitlines())
                read += int(counts["rchar"])
                written += int(counts["wchar"])
    return read, written


def _bytes_mapped() -> int:
    """A lower bound of the bytes hashed, in steps of 4 MiB: the client maps files into memory and reports nothing meanwhile.

    The steps keep the few pages that a hung process touches from counting as a sign of life.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return (usage.ru_minflt + usage.ru_majflt) // 1024 * 2**22
