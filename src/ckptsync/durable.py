"""Writes that survive a crash. The only module that calls fsync; knows no other module of ours but the values.

A file is written under a temporary name, fsynced, renamed into place, and its folder is fsynced: readers see the old content
or the new, never a part. Temporary names begin with `.tmp-`, so that `sweep` can delete what a crash left behind.
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
from ckptsync.regular_file import open_regular

TEMPORARY = ".tmp-"


def temporary_for(path: Path) -> Path:
    """An unused name beside `path` that `sweep` recognises."""
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}-{os.urandom(4).hex()}")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Does nothing on a file system that cannot fsync a folder (some FUSE mounts)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> Path:
    """Create a folder and its missing parents, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        make_inside(folder)
    return folder


def make_inside(folder: Path) -> Path:
    """Create a folder in one that exists, durably. Raises FileNotFoundError if that one is missing."""
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
    return folder


def rename(source: Path, target: Path) -> None:
    """Rename within one file system, durably in both folders. Replaces a file or an empty folder at the target."""
    source.rename(target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace a file atomically. `mode` holds from the first byte on, so that others can never read a secret."""
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
    """Replace a JSON file atomically. Keys keep their order."""
    # ASCII: a file name that is not UTF-8 (surrogates in Python) could not be written otherwise.
    write_text(path, json.dumps(value, indent=1) + "\n", mode=mode)


def load_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if the file is missing or holds no object. Raises OSError where it can't be read."""
    try:
        with open_regular(path) as file:
            value = json.load(file)
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_json(path: Path) -> dict[str, Any] | None:
    """As `load_json`, and None where the file can't be read: for what may be missing."""
    try:
        return load_json(path)
    except OSError:
        return None


def unchanged(folder: Path, files: Iterable[File]) -> bool:
    """Whether every file in the folder still has its listed size and mtime."""
    try:
        return all(matches(file, folder / file.path) for file in files)
    except OSError:
        return False


def matches(file: File, path: Path) -> bool:
    """Whether the file at `path` has the listed size and mtime. Raises OSError if there is none."""
    status = path.stat(follow_symlinks=False)
    return (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns)


def append_line(path: Path, line: str) -> None:
    """Append one line, in one write call, so that the lines of two processes do not mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Delete a folder. It is renamed first, so that a crash in the middle leaves no folder that looks complete."""
    doomed = temporary_for(folder)
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)
    sync_folder(folder.parent)


def sweep(folder: Path) -> list[str]:
    """Delete the temporary files and folders that a crash left, and return their names. Call it only while holding the lock."""
    if not folder.is_dir():
        return []
    stale = [entry for entry in folder.iterdir() if entry.name.startswith(TEMPORARY)]
    for entry in stale:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return [entry.name for entry in stale]
