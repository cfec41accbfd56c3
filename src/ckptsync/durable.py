"""Writes that survive a crash: the only module that calls fsync. Knows values and errors, nothing else of ours.

A file is written beside its final name, synced, renamed over it, and the folder is synced: a reader sees the old content or
the new one, never a part. Temporary names begin with `.tmp-`, so that a sweep can tell what a crash left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ckptsync.checkpoint import File

TEMPORARY = ".tmp-"


def temporary_for(path: Path) -> Path:
    """A name beside `path` that nobody uses and that a sweep recognises."""
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}-{os.urandom(4).hex()}")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. A file system that can't sync a folder (some FUSE mounts) is accepted as it is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> Path:
    """Create a folder and its parents where they are missing, and make their names durable."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
    return folder


def rename(source: Path, target: Path) -> None:
    """Move within one file system, durably in both folders. An existing empty folder or a file at the target is replaced."""
    source.rename(target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace a file's content in one step. `mode` holds from the first byte on, so a secret is never readable by others."""
    temporary = temporary_for(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any], *, mode: int = 0o644) -> None:
    """Replace a JSON file in one step. Keys keep their order."""
    # ASCII, so that a file name that is no UTF-8 (surrogates in Python) can be written and read back.
    write_text(path, json.dumps(value, indent=1) + "\n", mode=mode)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no file or no object in it."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def unchanged(folder: Path, files: Iterable[File]) -> bool:
    """Whether every file in the folder still has the size and mtime that it is listed with."""
    try:
        return all(matches(file, folder / file.path) for file in files)
    except OSError:
        return False


def matches(file: File, path: Path) -> bool:
    """Whether what is at a path has the size and mtime that the file is listed with. Raises OSError where there is nothing."""
    status = path.stat(follow_symlinks=False)
    return (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns)


def append_line(path: Path, line: str) -> None:
    """Add one line to a log that others read. One write call, so that lines of two processes don't mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Delete a folder for good: it is renamed first, so that a crash in the middle leaves nothing that looks whole."""
    doomed = temporary_for(folder)
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)
    sync_folder(folder.parent)


def sweep(folder: Path) -> list[str]:
    """Delete what a crash left under temporary names, and return those names. Call it only while holding the lock."""
    if not folder.is_dir():
        return []
    stale = [entry for entry in folder.iterdir() if entry.name.startswith(TEMPORARY)]
    for entry in stale:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return [entry.name for entry in stale]
