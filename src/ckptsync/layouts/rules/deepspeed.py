"""DeepSpeed's tree holds the shards of every rank: `latest` and `global_stepN/` (0.19.8).

`latest` proves nothing: rank 0 writes it before the barrier. The model shards say how many ranks there are.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ckptsync.checkpoint import File, Problem
from ckptsync.layouts.folder import Folder
from ckptsync.layouts.formats import pickle_reader, torch_zip
from ckptsync.layouts.formats.pickle_values import Items

SHARD = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_(optim|model)_states\.pt")
MODEL = re.compile(r"mp_rank_(\d+)_model_states\.pt")


@dataclass(frozen=True, slots=True)
class World:
    """What a model shard says of the training: data-parallel and model-parallel ranks, None where it does not say.

    `zero`: the optimizer is in shards of its own. `scheduler`: the scheduler is in the model shard.
    """

    data: int | None
    model: int | None
    zero: bool
    scheduler: bool


def check(folder: Folder, world_size: int | None) -> Iterator[Problem]:
    """The folder that `latest` names is present, with the shards of every rank. Raises Malformed or OSError for a shard."""
    if "latest" not in folder.files:
        yield Problem("latest", "missing: DeepSpeed could not find its shards", transient=True)
        return
    tag = folder.read("latest", limit=4096).decode("utf-8", "replace").strip()
    if not re.fullmatch(r"[\w.-]+", tag) or set(tag) <= {"."}:
        yield Problem("latest", "names no folder" if tag else "empty", transient=True)
        return
    files = folder.under(tag)
    if not files:
        yield Problem(tag, "missing, but latest names it", transient=True)
        return
    models = sorted(name for name in files if MODEL.fullmatch(name) or name.endswith("model_states.pt"))
    if not models:
        yield Problem(f"{tag}/mp_rank_00_model_states.pt", "missing: there is no model shard", transient=True)
        return
    world = _world(folder, f"{tag}/{models[0]}", world_size)
    if not world.scheduler and "scheduler.pt" not in folder.files:
        yield Problem("scheduler.pt", "missing, and DeepSpeed's shards hold no scheduler", transient=True)
    yield from _check_ranks(tag, files, world)


def _world(folder: Folder, name: str, world_size: int | None) -> World:
    with folder.open(name) as stream:
        state = pickle_reader.read(torch_zip.check(stream, folder.files[name].size, deep=False)).value
    if not isinstance(state, Items):
        return World(None, None, zero=False, scheduler=False)
    model, data = _positive(state.get("mp_world_size")), _positive(state.get("dp_world_size"))
    if _shards_in_part(state.get("ds_config")):
        data = None
    elif data is None and world_size:
        data = world_size // (model or 1)
    # Without ZeRO the optimizer is in the model shard itself.
    return World(data, model, zero=state.get("optimizer") is None, scheduler=state.get("lr_scheduler") is not None)


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _shards_in_part(config: Any) -> bool:
    """Whether MiCS is on: then only the first group of ranks writes shards."""
    zero = config.get("zero_optimization") if isinstance(config, Items) else None
    return isinstance(zero, Items) and (_positive(zero.get("mics_shard_size")) is not None)


def _check_ranks(tag: str, files: Mapping[str, File], world: World) -> Iterator[Problem]:
    found: dict[str, dict[int, set[int]]] = {"optim": defaultdict(set), "model": defaultdict(set)}
    for name in files:
        if match := SHARD.fullmatch(name):
            found[match[3]][int(match[2])].add(int(match[1]))
    models = {int(match[1]) for name in files if (match := MODEL.fullmatch(name))}
    parts = max(world.model or 1, len(models), *(len(ranks) for ranks in found.values()))
    if world.zero and not found["optim"]:
        yield Problem(
            f"{tag}/zero_pp_rank_0_mp_rank_00_optim_states.pt", "missing: ZeRO keeps the optimizer in it", transient=True
        )
    if models and len(models) != parts:
        yield Problem(f"{tag}/mp_rank_??_model_states.pt", f"{len(models)} of {parts} parts present", transient=True)
    for kind, by_part in found.items():
        if by_part:
            yield from _check_kind(f"{tag}/zero_pp_rank_??_mp_rank_??_{kind}_states.pt", by_part, parts, world.data)


def _check_kind(example: str, found: dict[int, set[int]], parts: int, data: int | None) -> Iterator[Problem]:
    expected = data or max(max(ranks) for ranks in found.values()) + 1
    count = sum(len([rank for rank in ranks if rank < expected]) for ranks in found.values())
    if count != expected * parts:
        yield Problem(example, f"{count} of {expected * parts} shards present", transient=True)
