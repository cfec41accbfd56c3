"""Nothing is newer than trainer_state.json, which the Trainer writes last (transformers 4.57 and 5.23, by strace)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from ckptsync.checkpoint import Problem
from ckptsync.layouts import file_names, trainer_state
from ckptsync.layouts.folder import Folder


def check(folder: Folder, layout: str) -> Iterator[Problem]:
    """No file was written after the state, and with weights alone, none was deleted after the last write."""
    yield from _check_state_is_last(folder)
    if layout == "weights-only":
        yield from _check_removal(folder)


def _check_state_is_last(folder: Folder) -> Iterator[Problem]:
    """No file that an exact resume needs is newer than the state.

    A second save of the same step that is killed leaves new weights beside an old optimizer, each complete: only the times
    show it.
    """
    state = folder.files.get(trainer_state.NAME)
    if state is None:
        return
    late = _late_weights(folder)
    for name, file in folder.files.items():
        if file.mtime_ns > state.mtime_ns and file_names.is_exact_state(name) and name not in late:
            yield Problem(name, "newer than trainer_state.json: another save of this step has started", transient=True)
    yield from _check_distcp(folder)


def _late_weights(folder: Folder) -> set[str]:
    """Weights that LLaMA-Factory rewrote after the save, to split off the value head, which it writes right after them."""
    heads = [file.mtime_ns for name, file in folder.files.items() if file_names.VALUE_HEAD.fullmatch(name)]
    if not heads:
        return set()
    return {name for name in file_names.weights(folder.files) if folder.files[name].mtime_ns <= max(heads)}


def _check_distcp(folder: Folder) -> Iterator[Problem]:
    """torch renames .metadata into place after the last .distcp, and leaves it there while a second save overwrites them."""
    for name, file in folder.files.items():
        metadata = folder.files.get(str(PurePosixPath(name).with_name(".metadata")))
        if name.endswith(".distcp") and metadata and file.mtime_ns > metadata.mtime_ns:
            yield Problem(name, "newer than its .metadata: another save has started", transient=True)


def _check_removal(folder: Folder) -> Iterator[Problem]:
    """No file was deleted after the last one was written, as by a rotation that was killed half-way."""
    if folder.files and folder.mtime_ns > max(file.mtime_ns for file in folder.files.values()):
        reason = "the folder is newer than its newest file: files were deleted, perhaps optimizer, scheduler and RNG state"
        yield Problem(".", reason, transient=True)
