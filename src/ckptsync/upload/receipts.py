"""The receipts of one output folder: a file each, the proof that a snapshot became a version. Knows no queue and no store."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ckptsync import durable
from ckptsync.checkpoint import Receipt, Rows
from ckptsync.upload import lineage


class Receipts:
    """The folder `receipts`. With a `run_id`, those of other runs don't count, and with a `store`, those of other stores.

    One that names neither does (ckptsync 0.1.0).

    Iterating gives every receipt, in no order; `name in receipts` asks for that of a snapshot. The file itself counts, even
    if it can't be read: a version is never uploaded twice for that.
    """

    def __init__(self, folder: Path, run_id: str | None, store: str | None) -> None:
        self._folder = folder
        self._run_id = run_id
        self._store = store

    def __iter__(self) -> Iterator[Receipt]:
        return self._read("*.json")

    def __contains__(self, name: object) -> bool:
        path = self.path(str(name))
        return path.exists() and self._is_ours(durable.read_json(path) or {})

    def path(self, name: str) -> Path:
        """Where the receipt of the snapshot of that name is, or will be."""
        return self._folder / f"{name}.json"

    def newest(self) -> Receipt | None:
        """That of the checkpoint that was saved last."""
        return lineage.newest(self)

    def of(self, checkpoint: str) -> Iterator[Receipt]:
        """Those of one checkpoint's saves, in no order."""
        return self._read(f"{checkpoint}.*.json")

    def keep(self, receipt: Receipt) -> None:
        """Write a receipt: from now on this very save counts as durable."""
        durable.make_inside(self._folder)
        durable.write_json(self.path(receipt.snapshot), {"schema": 1, **asdict(receipt)}, mode=0o600)

    def drop(self, receipt: Receipt) -> None:
        """Delete a receipt: its version is no longer in the store."""
        self.path(receipt.snapshot).unlink(missing_ok=True)

    def _is_ours(self, value: Mapping[str, Any]) -> bool:
        run = self._run_id is None or value.get("run_id") in (None, self._run_id)
        return run and (self._store is None or value.get("store", "") in ("", self._store))

    def _read(self, pattern: str) -> Iterator[Receipt]:
        for path in sorted(self._folder.glob(pattern)):
            value = durable.read_json(path)
            if value and value.pop("schema", None) == 1 and self._is_ours(value):
                with contextlib.suppress(TypeError, AttributeError):
                    receipt = Receipt(**{**value, "rows": Rows(**value.get("rows", {}))})
                    if _is_sound(receipt):
                        yield receipt


def _is_sound(receipt: Receipt) -> bool:
    """Whether the values that decisions rest on have their types: a file that somebody edited must not end the watching."""
    counts = (receipt.step, receipt.sequence, receipt.bytes, receipt.files, receipt.rows.count)
    times = (receipt.saved_at, receipt.seconds, receipt.committed_at)
    names = (receipt.snapshot, receipt.artifact, receipt.version, receipt.digest, receipt.state_digest, receipt.saved_print)
    return (
        all(isinstance(each, int) for each in counts)
        and all(isinstance(each, int | float) and math.isfinite(each) for each in times)
        and all(isinstance(each, str) for each in (*names, receipt.rows.digest, receipt.store))
        and isinstance(receipt.attempt, int | None)
        and isinstance(receipt.rows.start, int | None)
        and isinstance(receipt.run_id, str | None)
    )
