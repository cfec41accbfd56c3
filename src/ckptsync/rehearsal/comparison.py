"""Whether two checkpoints are the same training state, bit for bit; where not, how far they are apart, and the usual why.

No torch here: what torch.save wrote is a zip, and its members are compared. Only how far apart tensors are is asked of a process
that has it.
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
"""A relative difference below this looks like arithmetic, not like another training."""

TIMING = re.compile(r".*(?:runtime|per_second|_time|total_flos|num_input_tokens_seen)$")
"""What is logged of the machine rather than of the training."""


@dataclass(frozen=True, slots=True)
class Equality:
    """How one part of two checkpoints compares: equal or not, and what was looked at, in words.

    `relative` is the largest difference against the largest value, None where nothing numeric was compared.
    """

    part: str
    equal: bool
    detail: str
    relative: float | None = None


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
        return _differing(part, differing, one, other)
    size = sum((one / name).stat().st_size for name in ours)
    return Equality(part, True, f"{', '.join(sorted(ours))}, {size} bytes")


def _differing(part: str, names: Sequence[str], one: Path, other: Path) -> Equality:
    """How far the files of a part are apart, as far as that can be said."""
    measured = {name: found for name in names if (found := _difference(one / name, other / name))}
    if not measured:
        return Equality(part, False, f"{', '.join(names)} differs")
    name = max(measured, key=lambda each: measured[each]["largest"])
    worst = measured[name]
    where = f" in {worst['where']}" if worst["where"] else ""
    largest = f"at most by {worst['largest']:.3g}, relatively {worst['relative']:.1g}{where}"
    return Equality(part, False, f"{', '.join(names)} differs, {largest}", relative=worst["relative"])


def _difference(one: Path, other: Path) -> dict[str, Any] | None:
    """What trainer/tensor_difference says of two files; None where it can't be said (no torch, no tensors)."""
    command = [sys.executable, "-m", "ckptsync.trainer.tensor_difference", str(one), str(other)]
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=DIFFERENCE_SECONDS).stdout)
        return found if isinstance(found, dict) and found.get("largest") else None
    return None


def causes(results: Sequence[Equality], *, resumed: int) -> list[str]:
    """What usually makes a resumed training differ in this way, the likeliest first. `resumed` is the step it went on from."""
    different = {each.part: each for each in results if not each.equal}
    weights = different.get("weights")
    found = []
    if "random state" in different:
        found.append("a random generator that no checkpoint holds: one of the program's own, or of --dataloader_num_workers")
    if "losses" in different:
        found.append(f"other data after step {resumed}: --ignore_data_skip, a streaming data set, a sampler without the seed")
    if weights and weights.relative is not None and weights.relative < SMALL:
        found.append("kernels that add in another order each time: try --full_determinism True, and the same GPU and drivers")
    if "optimizer" in different or "scheduler" in different:
        found.append("an optimizer or scheduler that the program makes anew, or options that changed between the two starts")
    return found


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
