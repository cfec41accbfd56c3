"""Whether a checkpoint folder on this machine is complete: by its files, and by what is known of this very save."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ckptsync import layouts, record
from ckptsync.checkpoint import Verdict, fingerprint, step_of
from ckptsync.upload.spool import Spool


def validate(
    path: Path,
    spool: Spool,
    *,
    world_size: int | None = None,
    expected_names: Collection[str] | None = None,
    deep: bool = False,
) -> Verdict:
    """`layouts.inspect`, with what is known of the training. Never raises for what it finds.

    A marker with the exact print says that every rank is done, and a receipt that the save was complete. Beside one of them no
    other sign counts: not the order of modification times, which several nodes' clocks disagree about, nor a number of ranks.
    `world_size` is the number of training processes, if somebody gave it; else that of the current attempt counts.
    """
    size = world_size or record.read(spool.output_dir).world_size_at(step_of(path.name) or 0)
    verdict = layouts.inspect(path, world_size=size, expected_names=expected_names, deep=deep)
    if not verdict.complete and _proved(path.name, fingerprint(verdict.files), spool):
        return layouts.inspect(path, ordered=False, deep=deep)
    if not verdict.complete and world_size is None and verdict.world_size == 1:
        # A single process may have followed several; its file of RNG state has another name than theirs.
        return layouts.inspect(path, expected_names=expected_names, deep=deep)
    return verdict


def _proved(checkpoint: str, print_: str, spool: Spool) -> bool:
    return bool(spool.markers.of(checkpoint, print_)) or f"{checkpoint}.{print_}" in spool.receipts
