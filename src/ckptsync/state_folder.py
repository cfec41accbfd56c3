"""Where the state of an output folder is kept: in `.ckptsync` in it, and beside it while a training starts with an empty one.

Many programs insist on an empty output folder at their first start, as the examples of transformers 4.57 do, and continue only
where they find a checkpoint. So while such a training has saved nothing yet, `.NAME.ckptsync` beside the folder is the state.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ckptsync import durable

Done = TypeVar("Done")

NAME = ".ckptsync"
"""The folder below output_dir with everything of ours. The Trainer's rotation matches `checkpoint-*` only."""


def of(output_dir: Path) -> Path:
    """The folder with the state, whether it exists yet or not."""
    inside = output_dir / NAME
    return inside if _is_folder(inside) or not _is_beside(output_dir) else _beside(output_dir)


def make(output_dir: Path) -> Path:
    """The folder with the state, made where there is none. Only the one inside is ever made: the other one moved there."""
    folder = of(output_dir)
    return durable.make_folder(folder) if folder.name == NAME and not _is_folder(folder) else folder


def within(output_dir: Path, do: Callable[[Path], Done]) -> Done:
    """Do something in the folder with the state, which may move at that moment: then it is done where the state is now."""
    while True:
        folder = make(output_dir)
        try:
            return do(folder)
        except FileNotFoundError:
            if of(output_dir) == folder:
                raise


def move_out(output_dir: Path) -> bool:
    """Move the state beside an output folder that holds nothing else and could take it back. Whether it was moved."""
    beside = _beside(output_dir)
    if os.path.lexists(beside) or _others(output_dir) or not _is_folder(output_dir / NAME):
        return False
    one_file_system = output_dir.stat().st_dev == beside.parent.stat().st_dev
    if not one_file_system or not os.access(beside.parent, os.W_OK | os.X_OK):
        return False
    (output_dir / NAME).rename(beside)
    return True


def move_in(output_dir: Path, *, though_empty: bool = False) -> bool:
    """Move the state back into an output folder that is no longer empty. Whether it was moved."""
    beside = of(output_dir)
    if beside.name == NAME or not (though_empty or _others(output_dir)):
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


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _others(output_dir: Path) -> bool:
    """Whether anything but the state is in the folder."""
    with os.scandir(output_dir) as entries:
        return any(entry.name != NAME for entry in entries)
