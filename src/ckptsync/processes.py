"""Looks up processes in /proc. Sends no signals. Without /proc (macOS) every answer is "no such process"."""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

NAMESPACES = ("pid", "time")
"""The kinds of namespace in which a process has another pid or another start time."""


def start_time(pid: int) -> str | None:
    """When the kernel started the process (/proc/PID/stat, field 22); None if it has ended or is a zombie.

    Together with the pid this identifies a process: a reused pid has another start time.
    """
    fields = _fields(pid)
    return None if fields is None or fields[0] in "ZX" else fields[19]


def age(pid: int) -> float:
    """How many seconds ago the process was started; infinite if it has ended."""
    born = start_time(pid)
    if born is None:
        return math.inf
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(born) / os.sysconf("SC_CLK_TCK")


def group_members(leader: int) -> list[int]:
    """The pids of a process group, without zombies."""
    found = []
    for pid in _all():
        fields = _fields(pid)
        if fields and fields[0] not in "ZX" and fields[2] == str(leader):
            found.append(pid)
    return found


def started_with(variable: str, value: str) -> list[int]:
    """The pids of all processes, without zombies, that were started with this environment variable, wherever they are now.

    Those of other users don't show their environment, and are not found.
    """
    return [pid for pid in _all() if _was_started_with(pid, variable, value)]


def ancestors_started_with(pid: int, variable: str, value: str) -> list[int]:
    """The pids of the parent, its parent and so on, as far as they were started with this environment variable."""
    found: list[int] = []
    while (fields := _fields(pid)) and _was_started_with(pid := int(fields[1]), variable, value):
        found.append(pid)
    return found


def _was_started_with(pid: int, variable: str, value: str) -> bool:
    with contextlib.suppress(OSError):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return f"{variable}={value}".encode() in environment and start_time(pid) is not None
    return False


def is_python(pid: int) -> bool:
    """Whether the process runs a Python interpreter."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/exe").readlink().name.startswith("python")
    return False


def has_loaded(pid: int, library: str) -> bool:
    """Whether the process has mapped a file whose name begins so."""
    with contextlib.suppress(OSError):
        return f"/{library}" in Path(f"/proc/{pid}/maps").read_text("utf-8", "replace")
    return False


def descendants(pid: int) -> list[int]:
    """The pids of all descendants, each parent before its children."""
    found = []
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal, rather than the default action or SIG_IGN."""
    with contextlib.suppress(OSError):
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)
    return False


def identity(pid: int) -> dict[str, Any]:
    """What identifies a process for good, to be stored and later given to `living`."""
    namespaces = {f"{kind}_namespace": _namespace(kind) for kind in NAMESPACES}
    return {"host": socket.gethostname(), **namespaces, "pid": pid, "born": start_time(pid)}


def is_visible(named: Mapping[str, Any]) -> bool:
    """Whether the process of this stored `identity` ran where this one can look it up: on this machine, in this container.

    Containers of one machine may share a host name, but each has pids of its own, and may have another time of boot, from which
    start times count. Version 0.1.0 wrote no namespaces.
    """
    here = all(named.get(f"{kind}_namespace") in (None, _namespace(kind)) for kind in NAMESPACES)
    return here and named.get("host") == socket.gethostname()


def living(named: object) -> int | None:
    """The pid of the process with this stored `identity`, if it is visible and still running; else None."""
    if not isinstance(named, Mapping) or not is_visible(named):
        return None
    pid, born = named.get("pid"), named.get("born")
    return pid if isinstance(pid, int) and born is not None and start_time(pid) == born else None


def ended(pid: int) -> Callable[[], bool]:
    """A question to ask repeatedly: has that process ended? A reused pid doesn't count as the same process."""
    born = _life_sign(pid)

    def gone() -> bool:
        return born is None or _life_sign(pid) != born

    return gone


def _life_sign(pid: int) -> str | None:
    """What stays the same for as long as a process lives, None once it has ended; without /proc only that it is there."""
    if Path("/proc/self").exists():
        return start_time(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def _namespace(kind: str) -> str | None:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/ns/{kind}")  # noqa: PTH115 - its text is all that is wanted
    return None


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
