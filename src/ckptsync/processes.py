"""What the kernel says of processes (/proc). Signals nobody. Without /proc (macOS) it answers as if nobody were there."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def start_time(pid: int) -> str | None:
    """When the kernel started the process (/proc/PID/stat, field 22); None when it is gone or only waits to be reaped.

    With the pid it names one process: a reused number has another birth.
    """
    fields = _fields(pid)
    return None if fields is None or fields[0] in "ZX" else fields[19]


def group_members(leader: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for pid in _all():
        fields = _fields(pid)
        if fields and fields[0] not in "ZX" and fields[2] == str(leader):
            found.append(pid)
    return found


def descendants(pid: int) -> list[int]:
    """Every process that descends from this one, deepest last."""
    found = []
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for that signal, rather than dying of it or ignoring it."""
    with contextlib.suppress(OSError):
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)
    return False


def identity(pid: int) -> dict[str, Any]:
    """What names a process for ever: to be written down, and read back by `living`."""
    return {"host": socket.gethostname(), "pid": pid, "born": start_time(pid)}


def living(named: object) -> int | None:
    """The pid of a process that was written down by `identity`, if it is on this machine and still lives."""
    if not isinstance(named, Mapping) or named.get("host") != socket.gethostname():
        return None
    pid, born = named.get("pid"), named.get("born")
    return pid if isinstance(pid, int) and born is not None and start_time(pid) == born else None


def _all() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 - names are all that is wanted
    return []


def _fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on: state, parent, group, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
