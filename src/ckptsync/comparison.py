"""Whether two checkpoints are the same training state, bit for bit.

No torch: what torch.save wrote is a zip, and its members are compared.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptsync import layouts

PARTS = {
    "weights": re.compile(r"(?:model|adapter_model).*\.safetensors|pytorch_model.*\.bin"),
    "optimizer": re.compile(r"optimizer\.(?:pt|bin)"),
    "scheduler": re.compile(r"scheduler\.pt"),
    "random state": re.compile(r"rng_state.*\.pth"),
}

TIMING = re.compile(r".*(?:runtime|per_second|_time|total_flos|num_input_tokens_seen)$")
"""What is logged of the machine rather than of the training."""


@dataclass(frozen=True, slots=True)
class Equality:
    """How one part of two checkpoints compares: equal or not, and what was looked at, in words."""

    part: str
    equal: bool
    detail: str


def compare(one: Path, other: Path) -> list[Equality]:
    """Compare weights, optimizer, scheduler, random state and all logged values of two checkpoint folders."""
    return [*(_compare_files(part, pattern, one, other) for part, pattern in PARTS.items()), compare_logs(one, other)]


def compare_logs(one: Path, other: Path) -> Equality:
    """Compare what the two trainings logged, step by step: losses, gradient norms, learning rates, evaluations."""
    ours, theirs = _logged(one), _logged(other)
    differing = sorted(step for step in ours.keys() | theirs.keys() if ours.get(step) != theirs.get(step))
    if differing:
        return Equality("losses", False, f"{len(differing)} of {len(ours)} steps differ, the first is step {differing[0]}")
    return Equality("losses", bool(ours), f"all {len(ours)} steps")


def _compare_files(part: str, pattern: re.Pattern[str], one: Path, other: Path) -> Equality:
    ours, theirs = _matching(pattern, one), _matching(pattern, other)
    if not ours or ours != theirs:
        return Equality(part, False, f"{', '.join(sorted(ours ^ theirs)) or 'no such file'} is in one of the two only")
    differing = [name for name in sorted(ours) if _content(one / name) != _content(other / name)]
    if differing:
        return Equality(part, False, f"{', '.join(differing)} differs")
    size = sum((one / name).stat().st_size for name in ours)
    return Equality(part, True, f"{', '.join(sorted(ours))}, {size} bytes")


def _matching(pattern: re.Pattern[str], folder: Path) -> set[str]:
    return {file.path for file in layouts.list_files(folder) if pattern.fullmatch(file.path)}


def _content(path: Path) -> dict[str, str] | str:
    """The digest of a file; of a torch file those of its members, without the name of the archive, which is no state."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return _digest(file)
    digests = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                digests[name.partition("/")[2]] = _digest(member)
    return digests


def _digest(file: Any) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _logged(checkpoint: Path) -> dict[int, list[dict[str, Any]]]:
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in layouts.log_history(checkpoint):
        rows.setdefault(int(row["step"]), []).append({key: value for key, value in row.items() if not TIMING.fullmatch(key)})
    return rows
