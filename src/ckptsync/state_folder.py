"""Where the state of an output folder is kept: in `.ckptsync` in it, and beside it while a training starts with an empty one.

Many programs insist on an empty output folder at their first start, as the examples of transformers 4.57 do, and continue only
where they find a checkpoint. So while such a training has saved nothing yet, `.NAME.ckptsync` beside the folder is the state.
The program may delete the output folder meanwhile, and make it again: the state stays its state, and is found by its name.
Nothing here ever makes the output folder: a program's own mkdir of it would fail.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ckptsync import durable

Done = TypeVar("Done")

NAME = ".ckptsync"
"""The folder below output_dir with everything of ours. The Trainer's rotation matches `checkpoint-*` only."""

OF = "folder.json"
"""The file in a state beside an output folder that says which folder it was moved out of."""


def of(output_dir: Path) -> Path:
    """The folder with the state, whether it exists yet or not."""
    inside = output_dir / NAME
    return inside if _is_folder(inside) or not _is_beside(output_dir) else _beside(output_dir)


def make(output_dir: Path) -> Path:
    """The folder with the state, made where there is none. Only the one inside is ever made: the other one moved there.

    Raises FileNotFoundError if there is no output folder.
    """
    folder = of(output_dir)
    return durable.make_inside(folder) if folder.name == NAME and not _is_folder(folder) else folder


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
    durable.write_json(beside / OF, {"version": 1, **_identity(output_dir)})
    return True


def standing_beside(output_dir: Path) -> Path | None:
    """The state beside the folder, None where it isn't there."""
    folder = of(output_dir)
    return None if folder.name == NAME else folder


def is_untouched(output_dir: Path) -> bool:
    """Whether the output folder is the one that the state beside it was moved out of, and nothing came or went in it since.

    The inode alone proves nothing: a file system gives it to the next folder. Nor does the time: two folders may have the same.
    """
    with contextlib.suppress(OSError):
        said = durable.read_json(_beside(output_dir) / OF) or {}
        return {**said, **_identity(output_dir)} == said
    return False


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
    owners = {os.geteuid()}
    # A program may delete its output folder, and make it again: it is missing for a moment.
    with contextlib.suppress(OSError):
        owners.add(output_dir.stat().st_uid)
    try:
        status = beside.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid in owners and os.access(beside, os.W_OK | os.X_OK)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _identity(output_dir: Path) -> dict[str, Any]:
    status = output_dir.stat()
    return {"inode": status.st_ino, "mtime_ns": status.st_mtime_ns}


def _others(output_dir: Path) -> bool:
    """Whether anything but the state is in the folder."""
    with os.scandir(output_dir) as entries:
        return any(entry.name != NAME for entry in entries)
