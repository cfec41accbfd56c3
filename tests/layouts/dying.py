"""Saves checkpoint-2 over and over with a real Trainer, and is killed at another moment each time: `python dying.py DIR`.

Leaves DIR/whole/checkpoint-2 (old), DIR/again/checkpoint-2 (the same step saved a second time with other tensors),
and for each moment n DIR/first-n and DIR/second-n, where the first or the second save was killed. A moment is a change
of the folder (a name, an inode, the order of a size) between two calls into compiled code, seen by the interpreter's
profiler; what a library had not flushed is lost, as it is to any kill -9.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from saves import model, trainer  # type: ignore[import-not-found]  # its neighbour, when run as a script

CALLS = {"open", "write", "flush", "close", "__exit__", "rename", "replace", "remove", "mkdir", "write_record"} | {
    "write_end_of_file",
    "PyTorchFileWriter",
    "serialize_file",
    "save",
    "dump",
    "dumps",
    "crc32",
    "is_available",
}


def prepare(root: Path) -> Any:
    """A Trainer at step 2 that has not saved: safetensors starts threads at its first save, which no fork survives."""
    made = trainer(root, model(), max_steps=2, save_strategy="no")
    made.train()
    # What a first save looks up costs ten times the save: once here, instead of in every child.
    with tempfile.TemporaryDirectory() as scratch, mock.patch("transformers.modeling_utils.safe_save_file"):
        save_into(made, Path(scratch), changed=False)
    return made


def save_into(made: Any, output: Path, *, changed: bool) -> None:
    """Save checkpoint-2 of the Trainer below `output`, with other tensors where `changed`."""
    made.args.output_dir = str(output)
    if changed:
        for parameter in made.model.parameters():
            parameter.data.add_(1)
        for state in made.optimizer.optimizer.state.values():
            state["exp_avg"].add_(1)
    made._save_checkpoint(made.model, trial=None)


def on_change(folder: Path, act: Callable[[], None]) -> Callable[[FrameType, str, Any], None]:
    """A profiler that acts when the folder has changed since the last call into compiled code."""
    before = look(folder)

    def see(frame: FrameType, event: str, what: Any) -> None:
        nonlocal before
        if event in ("c_call", "c_return") and getattr(what, "__name__", "") in CALLS and (now := look(folder)) != before:
            before = now
            act()

    return see


def look(folder: Path) -> list[tuple[str, int, int]]:
    """Names, inodes, and sizes to the power of two: every file is seen empty, growing, and beside its successor."""
    try:
        return [(entry.name, entry.stat().st_size.bit_length(), entry.stat().st_ino) for entry in os.scandir(folder)]
    except OSError:
        return []


def in_child(work: Callable[[], None]) -> None:
    if os.fork() == 0:
        try:
            work()
        finally:
            os._exit(0)
    os.wait()


def count(made: Any, output: Path) -> int:
    """How many moments one save has; the save stays in `output`."""
    reader, writer = os.pipe()

    def work() -> None:
        seen = 0

        def act() -> None:
            nonlocal seen
            seen += 1

        sys.setprofile(on_change(output / "checkpoint-2", act))
        save_into(made, output, changed=True)
        sys.setprofile(None)
        os.write(writer, str(seen).encode())

    in_child(work)
    return int(os.read(reader, 20))


def die_at(made: Any, output: Path, number: int, *, changed: bool) -> None:
    """Save in a child that is killed at the moment of that number."""

    def work() -> None:
        left = number

        def act() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(on_change(output / "checkpoint-2", act))
        save_into(made, output, changed=changed)

    in_child(work)


def main(root: Path) -> None:
    made = prepare(root)
    whole = root / "whole" / "checkpoint-2"
    in_child(lambda: save_into(made, root / "whole", changed=False))
    shutil.copytree(whole, root / "again" / "checkpoint-2")
    for number in range(1, count(made, root / "again") + 1):
        die_at(made, root / f"first-{number}", number, changed=False)
        shutil.copytree(whole, root / f"second-{number}" / "checkpoint-2")
        die_at(made, root / f"second-{number}", number, changed=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
