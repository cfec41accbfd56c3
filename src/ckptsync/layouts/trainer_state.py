"""Reads trainer_state.json, which the Trainer writes last."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from ckptsync.checkpoint import Rows, TrainingState
from ckptsync.errors import IntegrityError
from ckptsync.layouts.folder import Folder
from ckptsync.layouts.formats.stream import Malformed

NAME = "trainer_state.json"
DIGEST_LENGTH = 16

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
        content = Folder(path, {}, (), 0).read(NAME, limit=LIMIT)
        rows = _Reader(count)
        _load(content, lambda value: value if not rows.takes(value) else None)
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
    metrics: dict[str, float] = {}
    rows = _Reader()

    def fold(value: dict[str, Any]) -> dict[str, Any] | None:
        # Keeping the rows would cost 100 MB in a long training; the watcher takes 36 MB in all.
        if not rows.takes(value):
            return value
        metrics.update({name: float(number) for name, number in value.items() if _is_metric(name, number)})
        return None

    document = _load(content, fold)
    step, limit = _integer(document, "global_step"), document.get("max_steps")
    epoch, best = document.get("epoch"), document.get("best_model_checkpoint")
    return TrainingState(
        global_step=step,
        max_steps=limit if isinstance(limit, int) else -1,
        epoch=float(epoch) if epoch is not None and _is_finite(epoch) else None,
        best_checkpoint=best if isinstance(best, str) else None,
        metrics=metrics,
        rows=Rows(rows.count, rows.start, rows.digest),
        digest=hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH],
    )


class _Reader:
    """Counts the rows of a log_history as they are read, up to a limit, and digests them."""

    def __init__(self, limit: int | None = None) -> None:
        self.count = 0
        self.start: int | None = None
        self._limit = limit
        self._hash = hashlib.sha256()

    def takes(self, value: dict[str, Any]) -> bool:
        """Whether an object of the document is a row."""
        if "step" not in value or "global_step" in value:
            return False
        if self._limit is None or self.count < self._limit:
            if not self.count and isinstance(value["step"], int):
                self.start = value["step"]
            self.count += 1
            self._hash.update(json.dumps(value, sort_keys=True).encode() + b"\n")
        return True

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()[:DIGEST_LENGTH] if self.count else ""


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


def _is_metric(name: str, value: Any) -> bool:
    return name not in ("step", "epoch") and _is_finite(value)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
