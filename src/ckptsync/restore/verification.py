"""Whether a download or a local checkpoint may be handed to a training. Fetches nothing and moves nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ckptsync import layouts
from ckptsync.checkpoint import Checkpoint, TrainingState, Version
from ckptsync.errors import CkptsyncError, IntegrityError
from ckptsync.store import artifact

RESERVE = 64 * 2**20
"""Bytes that must stay free after a download, for the training's own files."""


def require_space(version: Version, incoming: Path) -> None:
    """Raise CkptsyncError when the missing part of a version doesn't fit on the disk of `incoming`."""
    # Blocks, not sizes: a file has its full length from the start, with holes where no bytes have arrived.
    there = sum(path.stat().st_blocks * 512 for path in incoming.rglob("*") if path.is_file())
    free = shutil.disk_usage(incoming.parent).free
    if version.bytes - there + RESERVE > free:
        raise CkptsyncError(
            f"{version} needs {version.bytes / 1e9:.1f} GB, and {incoming.parent} has {free / 1e9:.1f} GB free",
            hint="Free some space or give another folder.",
        )


def check_download(folder: Path, version: Version) -> TrainingState:
    """Verify that a downloaded folder is a complete, resumable checkpoint, and set its files' times to the time of the save.

    Raises IntegrityError with the reason.
    """
    verdict = layouts.inspect(folder, step=version.step, ordered=False, deep=True)
    if not verdict.complete or verdict.state is None:
        reasons = "; ".join(str(problem) for problem in verdict.problems[:3]) or "no trainer_state.json"
        raise IntegrityError(f"{version.name}:{version.version} is incomplete: {reasons}")
    if not verdict.resumable:
        raise IntegrityError(f"{version.name}:{version.version} cannot be resumed from: {'; '.join(verdict.notes)}")
    for file in verdict.files:
        path = folder / file.path
        with path.open("rb") as opened:
            os.fsync(opened.fileno())
        os.utime(path, (version.saved_at, version.saved_at))
    return verdict.state


def check_local(checkpoint: Checkpoint) -> TrainingState:
    """Verify a complete local checkpoint by reading every byte that has a checksum. Raises IntegrityError."""
    verdict = layouts.inspect(checkpoint.path, ordered=False, deep=True)
    if not verdict.complete or verdict.state is None:
        raise IntegrityError(f"{checkpoint.name} is incomplete: {'; '.join(str(problem) for problem in verdict.problems[:3])}")
    return verdict.state


def differences(version: Version) -> list[str]:
    """What differs between the machine that saved a version and this one, as phrases for the log."""
    recorded = version.ours.get("libraries")
    here = artifact.libraries()
    if not isinstance(recorded, dict):
        return []
    return [
        f"{name} was {recorded[name]} and is {here[name]} on this machine"
        for name in sorted(recorded.keys() & here.keys())
        if recorded[name] != here[name]
    ]
