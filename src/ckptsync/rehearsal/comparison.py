"""Whether two checkpoints hold the same training state, bit for bit; if not, how far they differ, and the usual causes.

Works without torch: what torch.save wrote is a zip, and its members are compared. Only the size of a difference between tensors
needs torch, in a separate process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
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

DIFFERENCE_SECONDS = 600.0

SMALL = 1e-2
"""A relative difference below this comes from arithmetic rather than from another training."""

TIMING = re.compile(r".*(?:runtime|per_second|_time|total_flos|num_input_tokens_seen)$")
"""Logged values that describe the machine rather than the training."""


@dataclass(frozen=True, slots=True)
class Equality:
    """The result for one part of two checkpoints: equal or not, and in words what was compared.

    `relative` is the largest difference divided by the largest value; None if no numbers were compared.
    """

    part: str
    equal: bool
    detail: str
    relative: float | None = None


def compare(one: Path, other: Path) -> list[Equality]:
    """Compare weights, optimizer, scheduler, random state and all logged values of two checkpoint folders."""
    return [*(_compare_files(part, pattern, one, other) for part, pattern in PARTS.items()), compare_logs(one, other)]


def compare_logs(one: Path, other: Path) -> Equality:
    """Compare what two trainings logged, step by step: losses, gradient norms, learning rates, evaluations."""
    ours, theirs = _logged(one), _logged(other)
    differing = sorted(step for step in ours.keys() | theirs.keys() if ours.get(step) != theirs.get(step))
    if differing:
        return Equality("losses", False, f"{len(differing)} of {len(ours)} steps differ, first at step {differing[0]}")
    return Equality("losses", bool(ours), f"all {len(ours)} steps")


def _compare_files(part: str, pattern: re.Pattern[str], one: Path, other: Path) -> Equality:
    ours, theirs = _matching(pattern, one), _matching(pattern, other)
    if not ours or ours != theirs:
        return Equality(part, False, f"{', '.join(sorted(ours ^ theirs)) or 'no such file'} is in only one of the two")
    differing = [name for name in sorted(ours) if _content(one / name) != _content(other / name)]
    if differing:
        return _differing(part, differing, one, other)
    size = sum((one / name).stat().st_size for name in ours)
    return Equality(part, True, f"{', '.join(sorted(ours))}, {size} bytes")


def _differing(part: str, names: Sequence[str], one: Path, other: Path) -> Equality:
    """The result for files that differ, with the largest difference if it can be measured."""
    measured = {name: found for name in names if (found := _difference(one / name, other / name))}
    if not measured:
        return Equality(part, False, f"{', '.join(names)} differs")
    name = max(measured, key=lambda each: measured[each]["largest"])
    worst = measured[name]
    where = f" in {worst['where']}" if worst["where"] else ""
    largest = f"at most by {worst['largest']:.3g}, relatively {worst['relative']:.1g}{where}"
    return Equality(part, False, f"{', '.join(names)} differs, {largest}", relative=worst["relative"])


def _difference(one: Path, other: Path) -> dict[str, Any] | None:
    """The largest difference between two files of tensors; None if it can't be measured (no torch, no tensors)."""
    command = [sys.executable, "-m", "ckptsync.trainer.tensor_difference", str(one), str(other)]
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=DIFFERENCE_SECONDS).stdout)
        return found if isinstance(found, dict) and found.get("largest") else None
    return None


def causes(results: Sequence[Equality], *, resumed: int) -> list[str]:
    """The usual causes of such a difference, the likeliest first. `resumed` is the step that the training resumed from."""
    different = {each.part: each for each in results if not each.equal}
    weights = different.get("weights")
    found = []
    if "random state" in different:
        found.append("a random generator that no checkpoint saves: one of the program's own, or of --dataloader_num_workers")
    if "losses" in different:
        found.append(f"other data after step {resumed}: --ignore_data_skip, a streaming data set, an unseeded sampler")
    if weights and weights.relative is not None and weights.relative < SMALL:
        found.append("nondeterministic kernels: try --full_determinism True, on the same GPU and drivers")
    if "optimizer" in different or "scheduler" in different:
        found.append("an optimizer or scheduler that the program creates anew, or options that changed between the two starts")
    return found


def _matching(pattern: re.Pattern[str], folder: Path) -> set[str]:
    return {file.path for file in layouts.list_files(folder) if pattern.fullmatch(file.path)}


def _content(path: Path) -> dict[str, str] | str:
    """The digest of a file; for a torch file those of its members, named without the archive's own name, which is not state."""
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
