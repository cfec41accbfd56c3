"""Moves the state of an output folder into it and beside it, and removes what no folder owns. `state_folder` says where it is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ckptsync import durable, locks, processes, record, state_folder

PROOFS = ("spool", "parked", "receipts", "torn")
"""The folders of a state that hold what a user would miss: queued and parked snapshots, receipts, what resume moved aside."""


def move_out(output_dir: Path) -> bool:
    """See `state_folder.move_out`; while nobody changes run.json."""
    with locks.exclusive(record.path_of(output_dir).with_name("run.lock")):
        return state_folder.move_out(output_dir)


def move_in(output_dir: Path, *, though_empty: bool = False) -> bool:
    """See `state_folder.move_in`; while nobody changes run.json."""
    beside = state_folder.standing_beside(output_dir)
    if beside is None:
        return False
    with locks.exclusive(beside / "run.lock"):
        return state_folder.move_in(output_dir, though_empty=though_empty)


def leave_none_beside(output_dir: Path) -> Path | None:
    """At the end of a job: move the state into the output folder. Where that is gone, remove a state that proves nothing.

    Returns what stays beside it: snapshots and receipts are kept.
    """
    with contextlib.suppress(OSError):
        move_in(output_dir, though_empty=True)
    return _remove_beside(output_dir)


def drop_stray(output_dir: Path) -> Path | None:
    """At the start of a command: remove a state beside the output folder that a killed job left of another one of that name.

    It belongs to the folder that is there now while its job or its training lives, or if that folder is still the one that it was
    moved out of: the run's id, or the name, would let any later folder take it over. Snapshots and receipts are set aside;
    returns where.
    """
    beside = state_folder.standing_beside(output_dir)
    if beside is None or state_folder.is_untouched(output_dir):
        return None
    known = record.read(output_dir).values
    ranks = known.get("processes")
    trained_in = any(map(processes.living, [known.get("training"), *(ranks if isinstance(ranks, list) else [])]))
    if trained_in or any(locks.FolderLock(beside / name).holder for name in ("job", "lock")):
        return None
    stray = _remove_beside(output_dir)
    return stray and stray.rename(stray.with_name(f"{stray.name}-{os.urandom(4).hex()}"))


def _remove_beside(output_dir: Path) -> Path | None:
    """Remove the state beside the output folder, unless it holds snapshots or receipts. Returns what stays."""
    beside = state_folder.standing_beside(output_dir)
    if beside is None or any(any((beside / name).glob("*")) for name in PROOFS):
        return beside
    durable.remove_tree(beside)
    return None
