"""run.json: who the training in an output folder is. Knows no store and no process.

Written by `watch`, `run` and `resume`, and completed from inside the training; keys that this version doesn't know are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptsync import durable, locks

FOLDER = ".ckptsync"
"""The folder below output_dir that holds all that is ours. The Trainer's rotation matches `checkpoint-*` only."""


@dataclass(frozen=True, slots=True)
class Record:
    """What run.json says. `resumed_step` and `resumed_at` are of the last resume, None when there was none."""

    values: Mapping[str, Any]

    def text(self, key: str) -> str | None:
        """A string value, or None."""
        value = self.values.get(key)
        return value if isinstance(value, str) and value else None

    @property
    def command(self) -> list[str] | None:
        """The training's command line."""
        value = self.values.get("command")
        return value if isinstance(value, list) and value and all(isinstance(word, str) for word in value) else None

    @property
    def may_record_command(self) -> bool:
        """Whether the command may stand in a version's metadata; --no-record-command says no."""
        return self.values.get("record_command") is not False

    @property
    def world_size(self) -> int | None:
        """How many processes train together."""
        value = self.values.get("world_size")
        return value if isinstance(value, int) and value > 0 else None

    @property
    def resumed_step(self) -> int | None:
        """The global step from which the last resume went on."""
        value = self.values.get("resumed_step")
        return value if isinstance(value, int) else None

    @property
    def restarted_at(self) -> float | None:
        """When the first checkpoint was saved of a training that had started over, None when none has since the last resume."""
        value = self.values.get("restarted_at")
        return float(value) if isinstance(value, int | float) else None

    @property
    def resumed_at(self) -> float:
        """When that was, in seconds since the epoch; 0 when there was none."""
        value = self.values.get("resumed_at")
        return float(value) if isinstance(value, int | float) else 0.0


def path_of(output_dir: Path) -> Path:
    """Where run.json is for an output folder."""
    return output_dir / FOLDER / "run.json"


def read(output_dir: Path) -> Record:
    """The record of an output folder; an empty one where there is none yet."""
    return Record(durable.read_json(path_of(output_dir)) or {})


def update(output_dir: Path, **values: Any) -> Record:
    """Set these keys, keep all others, and drop those given as None. Readable by the owner alone: it holds a command line."""
    path = path_of(output_dir)
    durable.make_folder(path.parent)
    # The watcher and the training both complete it, and neither may lose what the other wrote.
    with locks.exclusive(path.with_name("run.lock")):
        before = durable.read_json(path)
        merged = {"version": 1, **(before or {}), **values}
        merged = {key: value for key, value in merged.items() if value is not None}
        if merged != before:
            durable.write_json(path, merged, mode=0o600)
    return Record(merged)
