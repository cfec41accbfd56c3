"""run.json: the run, command and history of starts of the training in an output folder. Knows no store and no process.

Written by `watch`, `run` and `resume`, and completed from inside the training. Unknown keys are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptsync import durable, locks

FOLDER = ".ckptsync"
"""The folder below output_dir with everything of ours. The Trainer's rotation matches `checkpoint-*` only."""


@dataclass(frozen=True, slots=True)
class Record:
    """What run.json says. A value of the wrong type counts as missing."""

    values: Mapping[str, Any]

    def text(self, key: str) -> str | None:
        """The non-empty string under `key`, or None."""
        value = self.values.get(key)
        return value if isinstance(value, str) and value else None

    @property
    def command(self) -> list[str] | None:
        """The training's command line."""
        value = self.values.get("command")
        return value if isinstance(value, list) and value and all(isinstance(word, str) for word in value) else None

    @property
    def may_record_command(self) -> bool:
        """Whether versions may carry the command in their metadata: not with --no-record-command."""
        return self.values.get("record_command") is not False

    @property
    def world_size(self) -> int | None:
        """The number of training processes."""
        value = self.values.get("world_size")
        return value if isinstance(value, int) and value > 0 else None

    @property
    def resumed_step(self) -> int | None:
        """The global step of the last resume; None if there was none."""
        value = self.values.get("resumed_step")
        return value if isinstance(value, int) else None

    @property
    def restarted_at(self) -> float | None:
        """When a training that restarted from scratch saved its first checkpoint; None if none has since the last resume."""
        value = self.values.get("restarted_at")
        return float(value) if isinstance(value, int | float) else None

    @property
    def resumed_at(self) -> float:
        """The time of the last resume, in seconds since the epoch; 0 if there was none."""
        value = self.values.get("resumed_at")
        return float(value) if isinstance(value, int | float) else 0.0


def path_of(output_dir: Path) -> Path:
    """The path of an output folder's run.json."""
    return output_dir / FOLDER / "run.json"


def read(output_dir: Path) -> Record:
    """The record of an output folder; empty if there is none yet."""
    return Record(durable.read_json(path_of(output_dir)) or {})


def update(output_dir: Path, **values: Any) -> Record:
    """Set these keys, keep the others, drop those given as None. The file is for its owner alone: it holds a command line."""
    path = path_of(output_dir)
    durable.make_folder(path.parent)
    # The watcher and the training both update it: without the lock one could lose what the other wrote.
    with locks.exclusive(path.with_name("run.lock")):
        before = durable.read_json(path)
        merged = {"version": 1, **(before or {}), **values}
        merged = {key: value for key, value in merged.items() if value is not None}
        if merged != before:
            durable.write_json(path, merged, mode=0o600)
    return Record(merged)
