"""The tree that DeepSpeed leaves in a checkpoint: `latest` and one shard per rank in `global_stepN/` (0.19.8)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from ckptsync.checkpoint import Problem
from ckptsync.layouts.folder import Folder

SHARD = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_(optim|model)_states\.pt")
MODEL = re.compile(r"mp_rank_(\d+)_model_states\.pt")


def check(folder: Folder, world_size: int | None) -> Iterator[Problem]:
    """What `latest` names is there, with the shard of every rank. `latest` itself proves nothing: it comes early."""
    if "latest" not in folder.files:
        yield Problem("latest", "missing: DeepSpeed would not find the tree", transient=True)
        return
    tag = folder.read("latest", limit=4096).decode("utf-8", "replace").strip()
    if not re.fullmatch(r"[\w.-]+", tag) or set(tag) <= {"."}:
        reason = "names no folder" if tag else "empty"
        yield Problem("latest", reason, transient=True)
        return
    files = folder.under(tag)
    if not files:
        yield Problem(tag, "missing, but latest names it", transient=True)
        return
    yield from _check_ranks(tag, list(files), world_size)


def _check_ranks(tag: str, files: list[str], world_size: int | None) -> Iterator[Problem]:
    found: dict[tuple[str, int], set[int]] = defaultdict(set)
    for name in files:
        if match := SHARD.fullmatch(name):
            found[match[3], int(match[2])].add(int(match[1]))
    models = {int(match[1]) for name in files if (match := MODEL.fullmatch(name))}
    if not models and not any(kind == "model" for kind, _ in found):
        yield Problem(f"{tag}/mp_rank_00_model_states.pt", "missing: the tree holds no model", transient=True)
    parts = len(models | {part for _, part in found}) or 1
    for (kind, part), ranks in sorted(found.items()):
        expected = world_size // parts if world_size else max(ranks) + 1
        expected = max(expected, *(len(other) for other in found.values()))
        if len(ranks) != expected or max(ranks) + 1 != expected:
            example = f"{tag}/zero_pp_rank_?_mp_rank_{part:02d}_{kind}_states.pt"
            yield Problem(example, f"{len(ranks)} of {expected} ranks are there", transient=True)
