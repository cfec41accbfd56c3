"""Whether what was fetched, or is on this disk already, may be handed to a training. Fetches nothing and moves nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ckptsync import layouts
from ckptsync.checkpoint import Checkpoint, TrainingState, Version
from ckptsync.errors import CkptsyncError, IntegrityError
from ckptsync.store import artifact

RESERVE = 64 * 2**20
"""Bytes that must stay free beside a download: the training has to be able to write too."""


def require_space(version: Version, incoming: Path) -> None:
    """Raise CkptsyncError where what is still missing of a version doesn't fit beside what is in `incoming` already."""
    # Blocks, not sizes: a file that was begun has its full length at once, and holes where nothing has arrived.
    there = sum(path.stat().st_blocks * 512 for path in incoming.rglob("*") if path.is_file())
    free = shutil.disk_usage(incoming.parent).free
    if version.bytes - there + RESERVE > free:
        raise CkptsyncError(
            f"{version} needs {version.bytes} bytes, and {incoming.parent} has {free} free",
            hint="Free some space or give another folder.",
        )


def check_download(folder: Path, version: Version) -> TrainingState:
    """Prove that a downloaded folder is a whole, resumable checkpoint, and give its files the time of the save.

    Raises IntegrityError with the reason.
    """
    verdict = layouts.inspect(folder, step=version.step, ordered=False, deep=True)
    if not verdict.complete or verdict.state is None:
        reasons = "; ".join(str(problem) for problem in verdict.problems[:3]) or "no trainer_state.json"
        raise IntegrityError(f"{version.name}:{version.version} is not a whole checkpoint: {reasons}")
    if not verdict.resumable:
        raise IntegrityError(f"{version.name}:{version.version} cannot be resumed from: {'; '.join(verdict.notes)}")
    for file in verdict.files:
        path = folder / file.path
        with path.open("rb") as opened:
            os.fsync(opened.fileno())
        os.utime(path, (version.saved_at, version.saved_at))
    return verdict.state


def check_local(checkpoint: Checkpoint) -> TrainingState:
    """Read every byte that has a checksum before a checkpoint that is here already is handed over. Raises IntegrityError."""
    verdict = layouts.inspect(checkpoint.path, deep=True)
    if not verdict.complete or verdict.state is None:
        raise IntegrityError(f"{checkpoint.name} is not whole: {'; '.join(str(problem) for problem in verdict.problems[:3])}")
    return verdict.state


def differences(version: Version) -> list[str]:
    """What differs between the machine that saved a version and this one, in words."""
    recorded = version.ours.get("libraries")
    here = artifact.libraries()
    if not isinstance(recorded, dict):
        return []
    return [
        f"{name} was {recorded[name]} and is {here[name]} here"
        for name in sorted(recorded.keys() & here.keys())
        if recorded[name] != here[name]
    ]
