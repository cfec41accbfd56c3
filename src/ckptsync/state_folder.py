"""Where the state of an output folder is kept: in `.ckptsync` below it, or beside it for as long as the output folder is empty.

Many programs insist on an empty output folder at their first start, as the examples of transformers 4.57 do, and continue only
where they find a checkpoint. So what is known before the first one stands beside the folder, in `.NAME.ckptsync`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

NAME = ".ckptsync"
"""The folder below output_dir with everything of ours. The Trainer's rotation matches `checkpoint-*` only."""


def of(output_dir: Path) -> Path:
    """The folder with the state, whether it exists yet or not."""
    inside = output_dir / NAME
    return inside if _is_folder(inside) or not _is_beside(output_dir) else _beside(output_dir)


def to_make(output_dir: Path) -> Path:
    """As `of`, for a command that is about to make the folder: beside an output folder that is empty and could take it later."""
    there = of(output_dir)
    return there if _is_folder(there) or not _could_move_in(output_dir) else _beside(output_dir)


def move_in(output_dir: Path) -> bool:
    """Move the state into the output folder, if it stands beside one that is no longer empty. Whether it was moved."""
    beside = of(output_dir)
    if beside.name == NAME or _is_empty(output_dir):
        return False
    beside.rename(output_dir / NAME)
    return True


def _beside(output_dir: Path) -> Path:
    real = output_dir.resolve()
    return real.parent / f".{real.name}{NAME}"


def _is_beside(output_dir: Path) -> bool:
    """Whether there is a state beside the folder, and of its owner: anybody can make a folder in /tmp.

    One that can't be written to, as a service may see it, is no state either.
    """
    beside = _beside(output_dir)
    try:
        status, owners = beside.lstat(), {os.geteuid(), output_dir.stat().st_uid}
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid in owners and os.access(beside, os.W_OK | os.X_OK)


def _could_move_in(output_dir: Path) -> bool:
    beside = _beside(output_dir)
    parent = beside.parent
    # What is there and isn't ours was planted.
    if os.path.lexists(beside):
        return False
    try:
        one_file_system = output_dir.stat().st_dev == parent.stat().st_dev
        return one_file_system and os.access(parent, os.W_OK | os.X_OK) and _is_empty(output_dir)
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_empty(output_dir: Path) -> bool:
    with os.scandir(output_dir) as entries:
        return next(entries, None) is None
