"""The frozen values that the packages hand to each other. No I/O.

Checkpoint (a folder the Trainer finished) → Snapshot (pinned in our spool)
→ Version (of a W&B artifact) → Receipt (proof that the snapshot became that version)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
"""The Trainer's name for a checkpoint folder (PREFIX_CHECKPOINT_DIR, transformers 4.57 and 5.x)."""


def step_of(name: str) -> int | None:
    """The global step in a folder name such as `checkpoint-500`; None for any other name."""
    match = CHECKPOINT_NAME.fullmatch(name)
    return int(match[1]) if match else None


LATEST = 253_402_300_799
"""The last second of the year 9999: a later moment is no time of a save, whatever a version's metadata says."""


@dataclass(frozen=True, slots=True)
class Run:
    """A W&B run. `entity` None means the default entity of the credentials."""

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


def is_storable(name: str) -> bool:
    """Whether the name of a file is UTF-8, as every store demands; Python reads other bytes as surrogates (PEP 383)."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def fingerprint(files: Iterable[File]) -> str:
    """Twelve hex digits over (relative path, size, mtime_ns): they differ between two saves of the same step."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.path}\0{file.size}\0{file.mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:12]


def saved_at(files: Iterable[File]) -> float:
    """The modification time of the newest file, in seconds since the epoch."""
    return max((file.mtime_ns for file in files), default=0) / 1e9


@dataclass(frozen=True, slots=True)
class Rows:
    """Identifies a log_history: how many rows, the step of the first one, and a digest over all, in order."""

    count: int = 0
    start: int | None = None
    digest: str = ""

    def comparable(self, other: Rows) -> bool:
        """Whether the two begin at the same step, so that one can be a beginning of the other."""
        return self.count > 0 and other.count > 0 and self.start == other.start


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What trainer_state.json says. Of `log_history` it keeps the last value of each metric, and what identifies it.

    `rows` identifies its log_history, `digest` the whole file. Both are empty in what ckptsync 0.1.0 wrote.
    """

    global_step: int
    max_steps: int
    epoch: float | None = None
    best_checkpoint: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    rows: Rows = Rows()
    digest: str = ""

    @property
    def finished(self) -> bool:
        """Whether the training reached max_steps. An exit code never proves it: a just-in-time save exits 0."""
        return 0 < self.max_steps <= self.global_step


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a checkpoint is incomplete: the file (`.` for the folder) and the reason.

    `unreadable` is true where the file system, not the content, is the reason: reading it again later may work.
    `transient` is true where the Trainer may still be writing, false where waiting cannot help.
    """

    file: str
    reason: str
    transient: bool = False
    unreadable: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `layouts.inspect` found in a checkpoint folder.

    `layout` is one of plain, sharded, peft, weights-only, deepspeed, fsdp-full, fsdp-sharded, or unknown.
    `resumable` is true when a training can resume exactly (weights, optimizer, scheduler, RNG, state).
    `world_size` counts the ranks with an rng_state file; None when there is none.
    `notes` are remarks that do not make the checkpoint incomplete.
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
        """Whether no check found a problem: as far as the files show, the save is finished."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint folder, as it was when it was scanned."""

    path: Path
    step: int
    verdict: Verdict

    @property
    def name(self) -> str:
        """The folder's name, `checkpoint-N`."""
        return self.path.name

    @property
    def files(self) -> tuple[File, ...]:
        """The regular files, sorted by path."""
        return self.verdict.files

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that differ between two saves of the same step."""
        return fingerprint(self.files)

    @property
    def saved_at(self) -> float:
        """The modification time of the newest file, in seconds since the epoch."""
        return saved_at(self.files)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint pinned in the spool: `directory/files` holds the files, `directory/snapshot.json` this value.

    `pinned_by` is reflink, link or copy. `sequence` numbers the pins of an output folder: the order of saving, independent of
    any clock. `run_id` and `attempt` say which start of which training saved it, None where nobody knows.
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
    run_id: str | None = None
    attempt: int | None = None

    @property
    def name(self) -> str:
        """`<checkpoint>.<fingerprint>`: the name of the snapshot's folder and of its receipt."""
        return f"{self.checkpoint}.{self.fingerprint}"

    @property
    def content(self) -> Path:
        """The folder with the pinned files."""
        return self.directory / "files"

    @property
    def bytes(self) -> int:
        """The total size of the files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Version:
    """A committed version of an artifact: `qualified` is ENTITY/PROJECT/NAME:vN, times are seconds since the epoch.

    `expires_at` is when the store deletes the version by itself (its TTL); None means never.
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
        """The `ckptsync` key of the metadata; empty for a version that another program uploaded."""
        value = self.metadata.get("ckptsync")
        return value if isinstance(value, Mapping) else {}

    @property
    def step(self) -> int | None:
        """The global step, from the metadata, else from an alias (`step-N`, or WandbCallback's `checkpoint_global_step_N`)."""
        for value in (self.ours.get("step"), self.metadata.get("global_step")):
            if isinstance(value, int):
                return value
        for alias in self.aliases:
            found = re.fullmatch(r"(?:checkpoint_global_step_|step-)(\d+)", alias)
            if found:
                return int(found[1])
        return None

    @property
    def attempt(self) -> int | None:
        """Which start of the training saved it, counted from 1; None where the version doesn't say."""
        value = self.ours.get("attempt")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def rows(self) -> Rows:
        """What it says of its log_history; empty where it says nothing."""
        count, start, digest = (self.ours.get(key) for key in ("rows", "rows_from", "rows_digest"))
        if not isinstance(count, int) or not isinstance(digest, str):
            return Rows()
        return Rows(count, start if isinstance(start, int) else None, digest)

    @property
    def saved_at(self) -> float:
        """When the Trainer saved it, else when the version was created: for people to read, it decides nothing."""
        value = self.ours.get("saved_at")
        return float(value) if isinstance(value, int | float) and 0 <= value <= LATEST else self.created_at

    @property
    def number(self) -> int:
        """The N of `vN`."""
        return int(self.version.removeprefix("v"))

    @property
    def is_model(self) -> bool:
        """Whether this is a final model, ours or WandbCallback's (transformers 5.24), from which no training can resume."""
        return self.ours.get("kind") == "model" or "final_model" in self.aliases

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that a snapshot was committed as a version whose manifest agrees with it.

    `artifact` is ENTITY/PROJECT/NAME, `version` is vN, `seconds` the time from hashing the first byte to this proof.
    `saved_print` is the fingerprint of what every save writes anew (`layouts.saved_print`), `store` identifies where it is
    (`Connection.store`).
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
    run_id: str | None = None
    attempt: int | None = None
    rows: Rows = Rows()
    state_digest: str = ""
    saved_print: str = ""
    store: str = ""
