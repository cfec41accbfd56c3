"""The queue between watching and uploading, kept as folders so that a crash and a clean start look the same.

    PINNED ──▶ UPLOADED    spool/NAME → receipts/NAME.json
       ├─────▶ SUPERSEDED  a newer one went first
       ├─────▶ PARKED      parked/NAME, a permanent error with its reason
       └─────▶ CHANGED     rewritten under us; the checkpoint is taken again

There is no UPLOADING: a crash in the middle leaves PINNED, which is true. NAME is `<checkpoint>.<print>`. Being in spool/ means
waiting. One process changes the spool, the one that holds the lock; any process may read it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ckptsync import durable
from ckptsync.checkpoint import Checkpoint, Receipt, Snapshot
from ckptsync.errors import CkptsyncError, IntegrityError
from ckptsync.record import FOLDER
from ckptsync.upload import snapshot

log = logging.getLogger(__name__)


def newest(receipts: Iterable[Receipt]) -> Receipt | None:
    """The one of the checkpoint that was saved last."""
    return max(receipts, key=lambda each: (each.sequence, each.committed_at), default=None)


def _readable(directory: Path) -> bool:
    try:
        snapshot.load(directory)
    except IntegrityError:
        return False
    return True


class Spool:
    """The folder `.ckptsync` of one output folder."""

    def __init__(self, output_dir: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.output_dir = output_dir
        self.root = output_dir / FOLDER
        self._clock = clock
        self._sequence: int | None = None

    @property
    def lock_path(self) -> Path:
        """What one watcher locks."""
        return self.root / "lock"

    @property
    def complete_markers(self) -> Path:
        """Where the callback inside the training says that a checkpoint is finished."""
        return self.root / "complete"

    def prepare(self) -> list[str]:
        """Make the folders, finish what a crash interrupted, and return the names that were swept."""
        for name in ("spool", "receipts", "parked", "torn", "incoming", "complete"):
            durable.make_folder(self.root / name)
        swept = [name for folder in ("", "spool", "receipts", "parked", "incoming") for name in durable.sweep(self.root / folder)]
        for directory in (*self._directories("spool"), *self._directories("parked")):
            swept += durable.sweep(directory)
        durable.remove_tree(self.root / "wandb")
        for directory in self._directories("spool"):
            if self.receipt_path(directory.name).exists():
                durable.remove_tree(directory)
                swept.append(directory.name)
            elif not _readable(directory):
                # It would wait for ever, and keep its checkpoint from being pinned again.
                durable.rename(directory, durable.make_folder(self.root / "torn") / f"{directory.name}-{self._clock():.0f}")
                self.record("unreadable", name=directory.name)
                swept.append(directory.name)
        return swept

    def pin(self, checkpoint: Checkpoint, *, alive: Callable[[], None] = lambda: None) -> Snapshot:
        """Put a checkpoint into the queue, as snapshot.pin does. Raises SnapshotChangedError when it changed meanwhile."""
        folder = self.root / "spool" / f"{checkpoint.name}.{checkpoint.fingerprint}"
        pinned = snapshot.pin(checkpoint, folder, sequence=self.next_sequence(), alive=alive)
        self.record("pinned", pinned, bytes=pinned.bytes, files=len(pinned.files), by=pinned.pinned_by)
        return pinned

    def pending(self) -> list[Snapshot]:
        """What waits to be uploaded, in the order of saving."""
        found = []
        for directory in self._directories("spool"):
            with contextlib.suppress(IntegrityError):
                found.append(snapshot.load(directory))
        return sorted(found, key=lambda each: each.sequence)

    def waiting(self) -> list[str]:
        """The names of what waits to be uploaded, without a look inside."""
        return [directory.name for directory in self._directories("spool")]

    def parked(self) -> list[tuple[Snapshot, str]]:
        """What a permanent error stopped, with its reason."""
        found = []
        for directory in self._directories("parked"):
            with contextlib.suppress(IntegrityError):
                reason = durable.read_json(directory / "reason.json") or {}
                found.append((snapshot.load(directory), str(reason.get("reason", "no reason was kept"))))
        return found

    def torn(self) -> list[Path]:
        """What resume moved out of the way."""
        return self._directories("torn")

    def receipts(self) -> Iterator[Receipt]:
        """Every receipt, in no order."""
        for path in sorted((self.root / "receipts").glob("*.json")):
            value = durable.read_json(path)
            if value and value.pop("schema", None) == 1:
                with contextlib.suppress(TypeError):
                    yield Receipt(**value)

    def newest_receipt(self) -> Receipt | None:
        """The receipt of the checkpoint that was saved last among the durable ones."""
        return newest(self.receipts())

    def receipt_path(self, name: str) -> Path:
        """Where the receipt of a snapshot is, or will be."""
        return self.root / "receipts" / f"{name}.json"

    def knows(self, name: str) -> bool:
        """Whether this very save of a checkpoint is queued, parked or durable already."""
        return self.receipt_path(name).exists() or (self.root / "spool" / name).exists() or (self.root / "parked" / name).exists()

    def preempted(self, checkpoint: str, fingerprint: str) -> bool:
        """Whether the training said that it saved this very checkpoint because it had to leave."""
        marker = durable.read_json(self.complete_markers / checkpoint) or {}
        return bool(marker.get("preempted")) and marker.get("print") == fingerprint

    def commit(self, pinned: Snapshot, receipt: Receipt) -> None:
        """UPLOADED: the receipt first, so that a crash in between never uploads twice."""
        self.keep(receipt)
        durable.remove_tree(pinned.directory)
        self.record(
            "uploaded",
            pinned,
            artifact=f"{receipt.artifact}:{receipt.version}",
            bytes=receipt.bytes,
            seconds=round(receipt.seconds, 3),
        )

    def keep(self, receipt: Receipt) -> None:
        """Write a receipt: from now on this very save counts as durable."""
        durable.write_json(self.receipt_path(receipt.snapshot), {"schema": 1, **asdict(receipt)}, mode=0o600)

    def supersede(self, dropped: Iterable[Snapshot], by: Snapshot, reason: str) -> None:
        """SUPERSEDED: the pin is let go, with an event that says for what: first, so that a crash in between hides nothing."""
        for each in dropped:
            self.record("superseded", each, by=by.name, reason=reason)
            durable.remove_tree(each.directory)

    def park(self, pinned: Snapshot, error: CkptsyncError) -> None:
        """PARKED: kept with the reason, out of the way of the next one."""
        durable.write_json(
            pinned.directory / "reason.json",
            {"version": 1, "reason": str(error), "hint": error.hint, "at": self._clock()},
        )
        target = self.root / "parked" / pinned.name
        shutil.rmtree(target, ignore_errors=True)
        durable.rename(pinned.directory, target)
        self.record("parked", pinned, reason=str(error))

    def unpark(self) -> list[str]:
        """Put everything that is parked back into the queue, and return the names."""
        names = []
        for directory in self._directories("parked"):
            durable.rename(directory, self.root / "spool" / directory.name)
            (self.root / "spool" / directory.name / "reason.json").unlink(missing_ok=True)
            names.append(directory.name)
        return names

    def discard(self, pinned: Snapshot) -> None:
        """CHANGED: the pin no longer holds what was accepted."""
        self.record("changed", pinned)
        durable.remove_tree(pinned.directory)

    def record(self, event: str, pinned: Snapshot | None = None, **fields: Any) -> None:
        """Add an event to history.jsonl. A full disk is logged and stops nothing: this is a diary."""
        about = {"checkpoint": pinned.checkpoint, "print": pinned.fingerprint, "step": pinned.step} if pinned else {}
        line = {"time": round(self._clock(), 3), "event": event, **about, **fields}
        try:
            durable.append_line(self.root / "history.jsonl", json.dumps(line))
        except OSError as error:
            log.warning("not written to history.jsonl: %s: %s", event, error)

    def pruned(self) -> Iterator[str]:
        """The versions that were let go after a receipt, as NAME:vN, from history.jsonl."""
        with contextlib.suppress(OSError), (self.root / "history.jsonl").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if '"pruned"' in line:
                    with contextlib.suppress(ValueError):
                        yield str(json.loads(line).get("artifact"))

    def _directories(self, name: str) -> list[Path]:
        try:
            entries = sorted((self.root / name).iterdir())
        except FileNotFoundError:
            return []
        return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(durable.TEMPORARY)]

    def next_sequence(self) -> int:
        """One more than every pin before. Receipts hold theirs, so that a restart goes on counting."""
        if self._sequence is None:
            known = [each.sequence for each in self.pending()]
            known += [each.sequence for each, _ in self.parked()]
            known += [each.sequence for each in self.receipts()]
            self._sequence = max(known, default=0)
        self._sequence += 1
        return self._sequence
