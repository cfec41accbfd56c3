"""The frozen values that travel along the arrows of the data flow. No I/O here.

Checkpoint (a folder the Trainer finished) → Snapshot (pinned in our spool)
→ Version (of a W&B artifact) → Receipt (the proof that the snapshot became it)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
"""How the Trainer names the folders that it resumes from (PREFIX_CHECKPOINT_DIR, transformers 4.57 and 5.x)."""


def step_of(name: str) -> int | None:
    """The global step in a folder name such as `checkpoint-500`, or None for any other name."""
    match = CHECKPOINT_NAME.fullmatch(name)
    return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class Run:
    """A W&B run. `entity` is None for the default entity of the credentials."""

    run_id: str
    project: str
    entity: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.entity, self.project, self.run_id) if part)


@dataclass(frozen=True, slots=True, order=True)
class File:
    """One regular file of a checkpoint: a relative POSIX path, bytes, and the modification time in nanoseconds."""

    path: str
    size: int
    mtime_ns: int


def fingerprint(files: Iterable[File]) -> str:
    """Twelve hex digits over (relative path, size, mtime_ns): a re-save of the same step has another one."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.path}\0{file.size}\0{file.mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:12]


def saved_at(files: Iterable[File]) -> float:
    """When the newest file was written, in seconds since the epoch."""
    return max((file.mtime_ns for file in files), default=0) / 1e9


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What trainer_state.json says. `log_history` is left out but for the last value of each metric."""

    global_step: int
    max_steps: int
    epoch: float | None = None
    best_checkpoint: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the training reached its end. An exit code never proves it (JIT saves exit with 0)."""
        return 0 < self.max_steps <= self.global_step


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a checkpoint is not whole: the file (or `.` for the folder) and the reason in words.

    `transient` is true where the Trainer may still be about to finish it, false where no waiting helps.
    """

    file: str
    reason: str
    transient: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `layouts.inspect` found in a folder.

    `layout` is one of plain, sharded, peft, weights-only, deepspeed, fsdp-full, fsdp-sharded, or unknown.
    `resumable` is true when a resumed training goes on exactly (weights, optimizer, scheduler, rng, state).
    `world_size` counts the ranks that left an rng_state; None when the folder doesn't tell.
    `notes` are things a person should know about a checkpoint that is whole.
    """

    layout: str
    problems: tuple[Problem, ...]
    resumable: bool
    files: tuple[File, ...] = ()
    state: TrainingState | None = None
    world_size: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every check that a look from outside can make says that the save is finished."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint folder, as it was at one moment."""

    path: Path
    step: int
    verdict: Verdict

    @property
    def name(self) -> str:
        """The folder's name, `checkpoint-N`."""
        return self.path.name

    @property
    def files(self) -> tuple[File, ...]:
        """Its regular files, sorted by path."""
        return self.verdict.files

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that another save of the same step changes."""
        return fingerprint(self.files)

    @property
    def saved_at(self) -> float:
        """Seconds since the epoch at which its newest file was written."""
        return saved_at(self.files)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint pinned in the spool: `directory/files` holds its files, `directory/snapshot.json` this value.

    `pinned_by` is reflink, link or copy. `sequence` counts the pins of an output folder: the order of saving, whatever the
    clock did meanwhile.
    """

    directory: Path
    checkpoint: str
    step: int
    fingerprint: str
    saved_at: float
    layout: str
    resumable: bool
    pinned_by: str
    sequence: int
    files: tuple[File, ...]
    state: TrainingState | None = None
    world_size: int | None = None

    @property
    def name(self) -> str:
        """`<checkpoint>.<print>`, the name of its folder and of its receipt."""
        return f"{self.checkpoint}.{self.fingerprint}"

    @property
    def content(self) -> Path:
        """The folder with the pinned files."""
        return self.directory / "files"

    @property
    def bytes(self) -> int:
        """The sum of its file sizes."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Version:
    """A committed version of an artifact: `qualified` is ENTITY/PROJECT/NAME:vN, times are seconds since the epoch.

    `expires_at` is when the store deletes it by itself (its TTL), None where it doesn't.
    """

    qualified: str
    name: str
    version: str
    aliases: tuple[str, ...]
    bytes: int
    files: int
    digest: str
    created_at: float
    metadata: Mapping[str, Any] = field(default_factory=dict)
    expires_at: float | None = None

    @property
    def ours(self) -> Mapping[str, Any]:
        """The metadata that ckptsync wrote; empty for a version that another program uploaded."""
        value = self.metadata.get("ckptsync")
        return value if isinstance(value, Mapping) else {}

    @property
    def step(self) -> int | None:
        """The global step: our metadata first, else HF's WandbCallback's alias `checkpoint_global_step_N`."""
        for value in (self.ours.get("step"), self.metadata.get("global_step")):
            if isinstance(value, int):
                return value
        for alias in self.aliases:
            found = re.fullmatch(r"(?:checkpoint_global_step_|step-)(\d+)", alias)
            if found:
                return int(found[1])
        return None

    @property
    def saved_at(self) -> float:
        """When the Trainer saved it, else when the version was created."""
        value = self.ours.get("saved_at")
        return float(value) if isinstance(value, int | float) else self.created_at

    @property
    def number(self) -> int:
        """N of `vN`."""
        return int(self.version.removeprefix("v"))

    @property
    def is_model(self) -> bool:
        """Whether it is a final model, which nothing can be resumed from: ours, or HF's WandbCallback's (transformers 5.24)."""
        return self.ours.get("kind") == "model" or "final_model" in self.aliases

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class Receipt:
    """The proof that a snapshot is committed and that the store's manifest agrees with it.

    `artifact` is ENTITY/PROJECT/NAME, `version` is vN, `seconds` the time from the first byte hashed to the proof.
    """

    snapshot: str
    step: int
    saved_at: float
    sequence: int
    artifact: str
    version: str
    digest: str
    bytes: int
    files: int
    seconds: float
    committed_at: float
