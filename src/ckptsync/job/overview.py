"""What is durable of a training, and what is at risk: read from its output folder, without a server or a process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ckptsync import locks, record
from ckptsync.checkpoint import Checkpoint, step_of
from ckptsync.restore import sources
from ckptsync.timestamps import iso
from ckptsync.upload.spool import Spool

DAY_FROM = 1.0
"""Seconds between the first and the last save below which no growth per day is shown."""


def report(output_dir: Path) -> dict[str, Any]:
    """The state of one training, with the keys that `ckptsync status --help` lists."""
    spool = Spool(output_dir)
    known = record.read(output_dir)
    newest = spool.receipts.newest()
    pending, parked = spool.pending(), spool.parked()
    complete, incomplete = sources.local_checkpoints(output_dir)
    torn = [path.name for path, _ in incomplete] + [path.name for path in spool.torn()]
    steps = [step for path in output_dir.iterdir() if (step := step_of(path.name)) is not None]
    at_end = newest is not None and any(each.step == newest.step and _finished(each) for each in complete)
    durable = newest is not None and newest.step >= max(steps, default=0) and not pending and not parked
    finished = at_end or (durable and known.completed)
    return {
        "output_dir": str(output_dir),
        "run": known.text("run_id"),
        "project": known.text("project"),
        "entity": known.text("entity"),
        "watcher": locks.FolderLock(spool.lock_path).holder,
        "last_durable_step": newest.step if newest else None,
        "last_durable_at": iso(newest.saved_at) if newest else None,
        "last_durable_version": f"{newest.artifact}:{newest.version}" if newest else None,
        "newest_local_step": max(steps, default=None),
        "finished": finished,
        "at_risk_steps": max(0, max(steps, default=0) - (newest.step if newest else 0)),
        "upload_bytes_per_second": _rate(spool),
        "at_risk_seconds": 0 if finished else round(time.time() - newest.saved_at) if newest else _age_of_training(output_dir),
        "pending": len(pending),
        "parked": len(parked),
        "torn": len(torn),
        "copied": sum(each.pinned_by == "copy" for each in (*pending, *(each for each, _ in parked))),
        "pending_names": [each.name for each in pending],
        "parked_reasons": {each.name: reason for each, reason in parked},
        "torn_names": torn,
        **_storage(spool, known),
    }


def _storage(spool: Spool, known: record.Record) -> dict[str, Any]:
    """The storage in use by the receipts. Each version counts in full, although the store keeps unchanged files once."""
    gone = set(spool.history.pruned())
    receipts = sorted(spool.receipts, key=lambda each: each.saved_at)
    stored = {f"{each.artifact}:{each.version}": each.bytes for each in receipts}
    seconds = receipts[-1].saved_at - receipts[0].saved_at if receipts else 0.0
    policy = known.text("keep")
    return {
        "stored_bytes": sum(size for name, size in stored.items() if name.rpartition("/")[2] not in gone),
        "growth_bytes_per_day": None if policy or seconds < DAY_FROM else round(sum(stored.values()) / seconds * 86400),
        "spool_bytes": sum(each.bytes for each in spool.pending()),
        "keep": policy,
    }


def _rate(spool: Spool) -> int | None:
    """The rate of the last upload, including hashing and commit; None before the first."""
    measured = [each for each in spool.receipts if each.seconds > 0]
    last = max(measured, key=lambda each: each.committed_at, default=None)
    return round(last.bytes / last.seconds) if last else None


def _finished(checkpoint: Checkpoint) -> bool:
    state = checkpoint.verdict.state
    return state is not None and state.finished


def _age_of_training(output_dir: Path) -> int | None:
    """Seconds since run.json changed, the first trace of a training without a durable checkpoint."""
    path = record.path_of(output_dir)
    return round(time.time() - path.stat().st_mtime) if path.exists() else None
