"""Checks this machine and an output folder for problems, and says what to do about them. Changes nothing and knows no store."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ckptsync import layouts, locks
from ckptsync.checkpoint import step_of
from ckptsync.job import grace_period, preemption
from ckptsync.state_folder import NAME
from ckptsync.store import artifact
from ckptsync.upload import snapshot
from ckptsync.upload.spool import Spool

OK, WARNING, ERROR = "ok", "warning", "error"

NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p", "afs", "orangefs")
"""File systems on which inotify reports no changes made by other machines (inotify(7)). FUSE file systems count too."""

WATCHES_ENOUGH = 8192

CACHE_WARNING = 50 * 10**9
"""Bytes in the wandb client's cache that are worth a warning: users have found 1.6 TB in theirs."""

CACHE_FILES = 50_000
"""The most files that are counted in the cache."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `doctor`. `advice` is empty if there is nothing to do."""

    check: str
    state: str
    message: str
    advice: str = ""


def machine(output_dir: Path) -> Iterator[Finding]:
    """All checks that need no network beyond this machine's own metadata service."""
    yield _writable(output_dir)
    yield _pinning(output_dir)
    yield _locks(output_dir)
    yield _events(output_dir)
    yield _space(output_dir)
    yield from _cache()
    yield _libraries()
    yield _systemd()
    yield from _notices(output_dir)


def _writable(output_dir: Path) -> Finding:
    if os.access(output_dir, os.W_OK | os.X_OK):
        return Finding("output folder", OK, f"{output_dir} is writable")
    advice = f"Run as the owner of the files, or create {NAME} in it for this user."
    return Finding("output folder", ERROR, f"{output_dir} is not writable", advice)


def _pinning(output_dir: Path) -> Finding:
    try:
        way = snapshot.cheapest_way(output_dir)
    except OSError as error:
        return Finding("links", ERROR, f"checkpoints cannot be pinned: {error.strerror}", "Make the folder writable.")
    if way == "copy":
        advice = "Use a file system with hard links, or plan for twice the space of the queue; --spool-limit bounds it."
        return Finding("links", WARNING, "no reflinks and no hard links on this file system: each checkpoint is copied", advice)
    return Finding("links", OK, f"checkpoints are pinned by {way}, without copying a byte")


def _locks(output_dir: Path) -> Finding:
    try:
        available = locks.available(output_dir)
    except OSError as error:
        return Finding("locks", ERROR, f"file locks cannot be tried: {error.strerror}", "Make the folder writable.")
    if not available:
        message = (
            "no file locks (flock) on this file system: a lock file keeps a second watcher out, and a lost machine leaves it"
        )
        advice = f"Mount it with locks (Lustre: -o flock), or delete {NAME}/lock.owner after the loss of a machine."
        return Finding("locks", WARNING, message, advice)
    return Finding("locks", OK, "file locks (flock) work")


def _events(output_dir: Path) -> Finding:
    """inotify where it works, else scans. Either way an event is only a hint, and the scan decides."""
    kind = file_system(output_dir)
    if kind.startswith("fuse") or kind in NETWORK:
        return Finding("file events", OK, f"{kind} is a network file system: checkpoints are found by scans, at most every 2 s")
    limit = _number(Path("/proc/sys/fs/inotify/max_user_watches"))
    if limit is None:
        return Finding("file events", OK, f"{kind}, no inotify on this system: checkpoints are found by scans")
    if limit < WATCHES_ENOUGH:
        advice = "sudo sysctl fs.inotify.max_user_watches=65536"
        return Finding("file events", WARNING, f"{kind}, only {limit} inotify watches: scans take over when they run out", advice)
    return Finding("file events", OK, f"{kind}, {limit} inotify watches")


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that a path is on; `unknown` if the kernel doesn't say."""
    best, kind = "", "unknown"
    target = os.path.realpath(path)
    with contextlib.suppress(OSError):
        for line in mounts.read_text(errors="replace").splitlines():
            fields, _, rest = line.partition(" - ")
            point = fields.split()[4].encode().decode("unicode_escape")
            if (target == point or target.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
                best, kind = point, rest.split()[0]
    return kind


def _space(output_dir: Path) -> Finding:
    free, largest = shutil.disk_usage(output_dir).free, 0
    for path in output_dir.iterdir():
        if step_of(path.name) is not None:
            try:
                largest = max(largest, sum(file.size for file in layouts.list_files(path)))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                advice = "Make it readable: until then it is neither uploaded nor resumed from."
                return Finding("disk", ERROR, f"{path.name} cannot be read: {error.strerror}", advice)
    if not largest:
        return Finding("disk", OK, f"{_size(free)} free, no checkpoint yet to compare with")
    message = f"{_size(free)} free, a checkpoint takes {_size(largest)}"
    if free < 2 * largest:
        return Finding("disk", WARNING, message, "Free space for two more, or lower save_total_limit and set --spool-limit.")
    return Finding("disk", OK, message)


def _cache() -> Iterator[Finding]:
    """The wandb client's cache, which HF's WandbCallback fills; ckptsync writes nothing there."""
    base = os.environ.get("WANDB_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wandb"
    held, seen = 0, 0
    for folder, _, names in os.walk(base):
        for name in names:
            with contextlib.suppress(OSError):
                held += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - there may be thousands
            seen += 1
        if seen > CACHE_FILES:
            break
    named = [f"{name}={os.environ[name]}" for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR") if os.environ.get(name)]
    message = f"{_size(held)}{' and more' if seen > CACHE_FILES else ''} in {base}" + (f"; {', '.join(named)}" if named else "")
    advice = "`wandb artifact cache cleanup 10GB` shrinks it; ckptsync writes nothing there." if held > CACHE_WARNING else ""
    yield Finding("wandb folders", WARNING if advice else OK, message, advice)


def _libraries() -> Finding:
    found = artifact.libraries()
    message = ", ".join(f"{name} {version}" for name, version in found.items())
    if "transformers" not in found:
        return Finding(
            "libraries",
            WARNING,
            message,
            "transformers isn't installed in ckptsync's environment: fine for `watch`, not for the hook.",
        )
    major, minor = (int(part) for part in found["transformers"].split(".")[:2])
    if (major, minor) < (4, 57) or major > 5:
        return Finding("libraries", WARNING, message, "ckptsync is tested with transformers 4.57 and 5.x.")
    return Finding("libraries", OK, message)


def _systemd() -> Finding:
    if Path("/run/systemd/system").is_dir():
        return Finding("systemd", OK, "is running: `ckptsync install-units` creates services for watch and resume")
    return Finding("systemd", OK, "is not running: use the scheduler's own restarts, or `ckptsync run --max-restarts`")


def _notices(output_dir: Path) -> Iterator[Finding]:
    """Where this machine's preemption notices come from, and whether an upload fits into the grace period."""
    providers = [name for name in preemption.CHOICES if name in preemption.SOURCES]
    with ThreadPoolExecutor(len(providers)) as pool:
        answers = list(pool.map(lambda name: _present(name), providers))
    found = [name for name, present in zip(providers, answers, strict=True) if present]
    if not found:
        yield Finding("notices", OK, "no metadata service answers: SIGTERM, SIGUSR1 and SIGUSR2 count as notices")
    else:
        yield Finding("notices", OK, f"the metadata service of {', '.join(found)} answers")
    newest = Spool(output_dir).receipts.newest()
    period = grace_period.usual(found)
    if newest is None or not newest.seconds or period is None:
        return
    warning = grace_period.GraceCheck().warning(size=newest.bytes, seconds=newest.seconds, grace=period)
    if warning:
        yield Finding("grace period", WARNING, warning, "Save more often, or save less.")
    else:
        yield Finding("grace period", OK, f"an upload takes {newest.seconds:.0f} s, the grace period is {period:.0f} s")


def _present(name: str) -> bool:
    try:
        return preemption.SOURCES[name]().present()
    except Exception:
        return False


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
