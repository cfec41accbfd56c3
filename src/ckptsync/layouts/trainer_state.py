"""Reads trainer_state.json, which the Trainer writes last."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

from ckptsync.checkpoint import Rows, TrainingState
from ckptsync.errors import IntegrityError
from ckptsync.layouts.folder import Folder
from ckptsync.layouts.formats.stream import Malformed

NAME = "trainer_state.json"
DIGEST_LENGTH = 16
BATCH = 1000

_encode = json.JSONEncoder(sort_keys=True).encode

LIMIT = 256 * 1024 * 1024
"""Enough for a million logged rows."""


def read_state(path: Path) -> TrainingState:
    """The training state of a checkpoint folder. Raises IntegrityError with the reason.

    `metrics` has the last finite value of each number that the Trainer logged (loss, eval_loss, learning_rate, …), except
    `step` and `epoch`.
    """
    try:
        return parse(Folder(path, {}, (), 0).read(NAME, limit=LIMIT))
    except (OSError, Malformed, MemoryError) as error:
        raise IntegrityError(f"{path / NAME}: {_reason(error)}") from error


def rows_digest(path: Path, count: int) -> str | None:
    """The digest over the first `count` rows that a checkpoint folder logged, None where it has fewer or can't be read."""
    try:
        rows, _ = _read_rows(Folder(path, {}, (), 0).read(NAME, limit=LIMIT), count)
    except (OSError, Malformed, MemoryError):
        return None
    return rows.digest if rows.count == count else None


def log_history(path: Path) -> list[dict[str, Any]]:
    """Every row that the Trainer logged up to this checkpoint, oldest first. Raises IntegrityError with the reason."""
    try:
        document = _load(Folder(path, {}, (), 0).read(NAME, limit=LIMIT))
    except (OSError, Malformed, MemoryError) as error:
        raise IntegrityError(f"{path / NAME}: {_reason(error)}") from error
    rows = document.get("log_history")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def parse(content: bytes) -> TrainingState:
    """The state in the content of a trainer_state.json. Raises Malformed."""
    rows, document = _read_rows(content)
    step, limit = _integer(document, "global_step"), document.get("max_steps")
    epoch, best = document.get("epoch"), document.get("best_model_checkpoint")
    return TrainingState(
        global_step=step,
        max_steps=limit if isinstance(limit, int) else -1,
        epoch=float(epoch) if epoch is not None and _is_finite(epoch) else None,
        best_checkpoint=best if isinstance(best, str) else None,
        metrics=rows.metrics,
        rows=Rows(rows.count, rows.start, rows.digest),
        digest=hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH],
    )


def _read_rows(content: bytes, limit: int | None = None) -> tuple[_Reader, dict[str, Any]]:
    """The first rows of a document, and the document without rows. Raises Malformed."""
    rows = _Reader(limit)
    document = _load(content, rows.take)
    rows.finish()
    return rows, document


class _Reader:
    """Counts the rows of a log_history as they are read, up to a limit, digests them and keeps their last metrics.

    It works on BATCH rows at a time: keeping all would cost 100 MB in a long training (the watcher takes 36 MB in all), and
    one by one they cost four times what parsing them does.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.count = 0
        self.start: int | None = None
        self.metrics: dict[str, float] = {}
        self._limit = sys.maxsize if limit is None else limit
        self._batch: list[dict[str, Any]] = []
        self._hash = hashlib.sha256()

    def take(self, value: dict[str, Any]) -> dict[str, Any] | None:
        """Take an object of the document if it is a row, and return it if it is not."""
        if "step" not in value or "global_step" in value:
            return value
        if self.count < self._limit:
            if not self.count and isinstance(value["step"], int):
                self.start = value["step"]
            self.count += 1
            self._batch.append(value)
            if len(self._batch) == BATCH:
                self.finish()
        return None

    def finish(self) -> None:
        """Digest the rows that were taken since the last time."""
        if self._batch:
            self._hash.update(_lines(self._batch).encode())
            self.metrics |= _last_metrics(self._batch)
            self._batch.clear()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()[:DIGEST_LENGTH] if self.count else ""


def _lines(rows: list[dict[str, Any]]) -> str:
    """The rows as JSON, a line each: what their digest is made from. Every version has to write the same bytes."""
    text = _encode(rows)[1:-1]
    if text.count("}, {") == len(rows) - 1:
        return text.replace("}, {", "}\n{") + "\n"
    return "".join(_encode(row) + "\n" for row in rows)


def _last_metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The last finite number of each name."""
    found = dict.fromkeys(("step", "epoch"), 0.0)
    for row in reversed(rows):
        if not row.keys() <= found.keys():
            found |= {name: float(number) for name, number in row.items() if name not in found and _is_finite(number)}
    return {name: number for name, number in found.items() if name not in ("step", "epoch")}


def _load(content: bytes, hook: Any = None) -> dict[str, Any]:
    try:
        document = json.loads(content, object_hook=hook)
    except (ValueError, RecursionError):
        raise Malformed("truncated or invalid JSON" if content else "empty") from None
    if not isinstance(document, dict):
        raise Malformed("not a JSON object")
    return document


def _integer(document: dict[str, Any], key: str) -> int:
    value = document.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Malformed(f"has no {key}", transient=False)
    return value


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
