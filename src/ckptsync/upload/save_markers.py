"""What the training itself says of its saves, in a file per checkpoint, written by `trainer.marker`. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptsync import durable
from ckptsync.checkpoint import step_of


class SaveMarkers:
    """The markers in `folder`. One counts for the very save that it names by its print, and for no other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, checkpoint: str, fingerprint: str) -> Mapping[str, Any]:
        """What the training said of this save: run, attempt, preempted …; empty where it said nothing."""
        value = durable.read_json(self.folder / checkpoint) or {}
        return value if value.get("print") == fingerprint else {}

    def last(self, attempt: int) -> str | None:
        """The checkpoint that the training saved last in that attempt, also where it is gone; None where it said nothing."""
        named = [
            path.name for path in self.folder.glob("checkpoint-*") if (durable.read_json(path) or {}).get("attempt") == attempt
        ]
        return max(named, key=lambda name: step_of(name) or 0, default=None)

    def preempted(self, checkpoint: str, fingerprint: str) -> bool:
        """Whether the training made this save because it had to leave."""
        return bool(self.of(checkpoint, fingerprint).get("preempted"))
