"""What about this machine and this output folder helps or hinders: looks only, and says what to do. Knows no store."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ckptsync import layouts
from ckptsync.checkpoint import step_of
from ckptsync.job import grace_period, preemption
from ckptsync.record import FOLDER
from ckptsync.store import artifact
from ckptsync.upload import snapshot
from ckptsync.upload.spool import Spool

OK, WARNING, ERROR = "ok", "warning", "error"

NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p", "afs", "orangefs")
"""File systems on which the kernel sees no changes that other machines make (inotify(7)), and FUSE's beside them."""

WATCHES_ENOUGH = 8192

CACHE_MUCH = 50 * 10**9
"""Bytes in the wandb client's cache from which it is worth a word: people have found 1.6 TB in theirs."""

LOOKED_AT = 50_000
"""Files that are counted in the cache at most."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `doctor`. `advice` is empty where there is nothing to do."""

    check: str
    state: str
    message: str
    advice: str = ""


def machine(output_dir: Path) -> Iterator[Finding]:
    """Every check that needs no network beyond this machine's own metadata service."""
    yield _writable(output_dir)
    yield _pinning(output_dir)
    yield _events(output_dir)
    yield _space(output_dir)
    yield from _cache()
    yield _libraries()
    yield _systemd()
    yield from _notices(output_dir)


def _writable(output_dir: Path) -> Finding:
    if os.access(output_dir, os.W_OK | os.X_OK):
        return Finding("output folder", OK, f"{output_dir} can be written to")
    advice = f"Run as the owner of the files, or make {FOLDER} in it for this user."
    return Finding("output folder", ERROR, f"{output_dir} cannot be written to", advice)


def _pinning(output_dir: Path) -> Finding:
    try:
        way = snapshot.cheapest_way(output_dir)
    except OSError as error:
        return Finding("links", ERROR, f"nothing can be pinned: {error.strerror}", "Let the folder be written to.")
    if way == "copy":
        advice = "Use a file system with hard links, or plan for twice the space of what waits; --spool-limit bounds it."
        return Finding("links", WARNING, "neither reflinks nor hard links here: each checkpoint is copied", advice)
    return Finding("links", OK, f"checkpoints are pinned by {way}, no byte is copied")


def _events(output_dir: Path) -> Finding:
    """inotify where it works, scans where it doesn't: a scan is the truth in any case, an event only a hint."""
    kind = file_system(output_dir)
    if kind.startswith("fuse") or kind in NETWORK:
        return Finding(
            "file events", OK, f"{kind}: a network file system, so checkpoints are found by scans, every 2 s or less often"
        )
    limit = _number(Path("/proc/sys/fs/inotify/max_user_watches"))
    if limit is None:
        return Finding("file events", OK, f"{kind}, no inotify here: checkpoints are found by scans")
    if limit < WATCHES_ENOUGH:
        advice = "sudo sysctl fs.inotify.max_user_watches=65536"
        return Finding("file events", WARNING, f"{kind}, only {limit} inotify watches: scans step in", advice)
    return Finding("file events", OK, f"{kind}, {limit} inotify watches")


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that a path is on; `unknown` where the kernel doesn't tell."""
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
    free = shutil.disk_usage(output_dir).free
    folders = [path for path in output_dir.iterdir() if step_of(path.name) is not None and path.is_dir()]
    largest = max((sum(file.size for file in layouts.list_files(path)) for path in folders), default=0)
    if not largest:
        return Finding("disk", OK, f"{_size(free)} free, no checkpoint here yet to compare with")
    message = f"{_size(free)} free, a checkpoint takes {_size(largest)}"
    if free < 2 * largest:
        return Finding("disk", WARNING, message, "Make room for two more, or lower save_total_limit and set --spool-limit.")
    return Finding("disk", OK, message)


def _cache() -> Iterator[Finding]:
    """The wandb client's folders. ckptsync fills none of them; HF's WandbCallback does."""
    base = os.environ.get("WANDB_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wandb"
    held, seen = 0, 0
    for folder, _, names in os.walk(base):
        for name in names:
            with contextlib.suppress(OSError):
                held += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - there may be thousands
            seen += 1
        if seen > LOOKED_AT:
            break
    named = [f"{name}={os.environ[name]}" for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR") if os.environ.get(name)]
    message = f"{_size(held)}{' and more' if seen > LOOKED_AT else ''} in {base}" + (f"; {', '.join(named)}" if named else "")
    advice = "`wandb artifact cache cleanup 10GB` empties it; ckptsync puts nothing there." if held > CACHE_MUCH else ""
    yield Finding("wandb folders", WARNING if advice else OK, message, advice)


def _libraries() -> Finding:
    found = artifact.libraries()
    message = ", ".join(f"{name} {version}" for name, version in found.items())
    if "transformers" not in found:
        return Finding(
            "libraries", WARNING, message, "transformers isn't installed beside ckptsync: fine for `watch`, not for the hook."
        )
    major, minor = (int(part) for part in found["transformers"].split(".")[:2])
    if (major, minor) < (4, 57) or major > 5:
        return Finding("libraries", WARNING, message, "ckptsync is tested with transformers 4.57 and 5.x.")
    return Finding("libraries", OK, message)


def _systemd() -> Finding:
    if Path("/run/systemd/system").is_dir():
        return Finding("systemd", OK, "runs here: `ckptsync install-units` makes services of watch and resume")
    return Finding("systemd", OK, "does not run here; use the scheduler's own restart, or `ckptsync run --max-restarts`")


def _notices(output_dir: Path) -> Iterator[Finding]:
    """Who tells here that the machine is about to go, and whether an upload fits into the time that is left then."""
    followed = [name for name in preemption.CHOICES if name in preemption.SOURCES]
    with ThreadPoolExecutor(len(followed)) as pool:
        answers = list(pool.map(lambda name: _present(name), followed))
    found = [name for name, present in zip(followed, answers, strict=True) if present]
    if not found:
        yield Finding("notices", OK, "no metadata service answers: SIGTERM and SIGUSR1 are followed")
    else:
        yield Finding("notices", OK, f"the metadata service of {', '.join(found)} answers")
    newest = Spool(output_dir).newest_receipt()
    period = grace_period.usual(found)
    if newest is None or not newest.seconds or period is None:
        return
    warning = grace_period.GraceCheck().warning(size=newest.bytes, seconds=newest.seconds, grace=period)
    if warning:
        yield Finding("grace period", WARNING, warning, "Save more often or less; see above.")
    else:
        yield Finding("grace period", OK, f"an upload takes {newest.seconds:.0f} s, the notice here is {period:.0f} s")


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
