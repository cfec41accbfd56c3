"""The completion marker, by which the training states that every rank has finished saving a checkpoint.

`<output_dir>/.ckptsync/complete/checkpoint-N` holds {version, step, saved_at, world_size, print, preempted, run, attempt}. It is
valid as long as the files in checkpoint-N have the fingerprint `print`. It is never inside the checkpoint, which it would change.
The one of the last save stays where that is gone, as a callback may move or pack checkpoints: `print` is null if it did before.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ckptsync import locks, state_folder, state_moves
from ckptsync.checkpoint import File, fingerprint, is_storable, step_of


def write(
    output_dir: Path,
    step: int,
    *,
    world_size: int,
    preempted: bool = False,
    run_id: str | None = None,
    attempt: int | None = None,
    though_gone: bool = False,
) -> Path | None:
    """Write the marker of `checkpoint-<step>`, and delete those of deleted checkpoints.

    None if there is no such folder, unless `though_gone` says that it was saved.

    It is renamed into place but not synced, because an fsync would make the training wait for the disk. After a power cut it may
    be missing; the watcher then waits for a quiet period.
    """
    checkpoint = output_dir / f"checkpoint-{step}"
    if not (checkpoint.is_dir() or though_gone):
        return None
    value = {
        "version": 1,
        "step": step,
        "saved_at": time.time(),
        "world_size": world_size,
        "print": _print_of(checkpoint),
        "preempted": preempted,
        "run": run_id,
        "attempt": attempt,
    }
    text = json.dumps(value) + "\n"
    # With the first checkpoint the state moves into the output folder. The watcher does that too, if it lives.
    with contextlib.suppress(OSError):
        state_moves.move_in(output_dir)
    marker = state_folder.within(output_dir, lambda state: _put(state / "complete", checkpoint.name, text))
    state_folder.within(output_dir, lambda state: _delete_others(output_dir, state / "complete", checkpoint.name))
    return marker


def _put(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    temporary = folder / f".tmp-{name}-{os.getpid()}"
    temporary.write_text(text, "utf-8")
    return temporary.replace(folder / name)


def _print_of(checkpoint: Path) -> str | None:
    try:
        return fingerprint(files(checkpoint))
    except FileNotFoundError:
        return None


def _delete_others(output_dir: Path, folder: Path, last: str) -> None:
    """Delete the markers of checkpoints that are gone, but for that of the last save."""
    for other in folder.glob("checkpoint-*"):
        if other.name != last and not (output_dir / other.name).is_dir():
            other.unlink(missing_ok=True)


def await_pin(output_dir: Path, name: str, *, seconds: float) -> bool:
    """Wait until the checkpoint is pinned as its marker names it, if somebody watches. Whether it is."""
    state = state_folder.of(output_dir)
    said = json.loads((state / "complete" / name).read_text("utf-8"))
    if said["print"] is None:
        return False
    save, deadline = f"{name}.{said['print']}", time.monotonic() + seconds
    while locks.FolderLock(state / "lock").holder and time.monotonic() < deadline:
        state = state_folder.of(output_dir)
        if any(path.exists() for path in (state / "spool" / save, state / "parked" / save, state / "receipts" / f"{save}.json")):
            return True
        time.sleep(0.02)
    return False


def run_of(output_dir: Path, step: int) -> str | None:
    """The id of the run that saved `checkpoint-<step>`; None if nothing says that it was one."""
    try:
        said = json.loads((state_folder.of(output_dir) / "complete" / f"checkpoint-{step}").read_text("utf-8"))
        return str(said["run"]) if said["run"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def newest_finished(output_dir: Path) -> Path | None:
    """The checkpoint with the highest step whose marker names exactly the files that are there; None if there is none."""
    for marker in sorted((state_folder.of(output_dir) / "complete").glob("checkpoint-*"), key=_step_of, reverse=True):
        checkpoint = output_dir / marker.name
        try:
            said = json.loads(marker.read_text("utf-8"))
            if said["print"] == fingerprint(files(checkpoint)):
                return checkpoint
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _step_of(marker: Path) -> int:
    return step_of(marker.name) or 0


def files(checkpoint: Path) -> Iterator[File]:
    """The regular files below a checkpoint, as the watcher lists them."""
    pending = [(str(checkpoint), "")]
    while pending:
        folder, prefix = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if not is_storable(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield File(f"{prefix}{entry.name}", status.st_size, status.st_mtime_ns)
