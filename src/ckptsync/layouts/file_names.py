"""The names that the Trainer and its backends give to the files of a checkpoint (transformers 4.57 to 5.24)."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath

OPTIMIZERS = {"optimizer.pt", "optimizer.bin"}
SCHEDULERS = {"scheduler.pt"}
STATE = {"trainer_state.json"}

RNG = re.compile(r"rng_state(?:_(\d+))?\.pth")
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin)")
INDEX = re.compile(r".+\.(?:safetensors|bin)\.index\.json")
MARKER = re.compile(r"\.tmp[A-Za-z0-9]{6}|\.metadata\.tmp|checkpoint-is-incomplete\.txt")
ADAPTER = re.compile(r"adapter_model\.(?:safetensors|bin)")
MODEL = re.compile(r"(?:model|pytorch_model|adapter_model|mm_projector).*\.(?:safetensors|bin)")
"""What the Trainer itself saves; callbacks put weights of their own beside it, and late (an average, a teacher)."""
FSDP_MODEL = re.compile(r"pytorch_model_fsdp\w*\.bin")
VALUE_HEAD = re.compile(r"value_head\.(?:safetensors|bin)")
TAG = re.compile(r"global_step\d+")


def base(name: str) -> str:
    """The last part of a relative path."""
    return PurePosixPath(name).name


def parent(name: str) -> str:
    """The folder part of a relative path, `.` for the checkpoint itself."""
    return str(PurePosixPath(name).parent)


def normalise(name: str) -> str:
    """The name without what changes from step to step, so that the names of two checkpoints can be compared."""
    return TAG.sub("global_step*", name)


def weights(names: Collection[str]) -> set[str]:
    """The files that hold the model: weights, shards, adapters, and those of FSDP and DeepSpeed."""
    return {name for name in names if is_weights(name)}


def is_weights(name: str) -> bool:
    """Whether a file holds (a part of) the model."""
    parts = PurePosixPath(name).parts
    if any(part.startswith("pytorch_model_fsdp_") for part in parts[:-1]):
        return name.endswith(".distcp")
    if in_deepspeed_tree(name):
        return parts[-1].endswith("model_states.pt")
    return bool(MODEL.fullmatch(parts[-1]))


def is_optimizer(name: str) -> bool:
    """Whether a file holds (a part of) the optimizer."""
    parts = PurePosixPath(name).parts
    if any(part.startswith("optimizer_") for part in parts[:-1]):
        return name.endswith(".distcp")
    return name in OPTIMIZERS or in_deepspeed_tree(name)


def in_deepspeed_tree(name: str) -> bool:
    """Whether a file lies in a `global_stepN` folder."""
    return any(TAG.fullmatch(part) for part in PurePosixPath(name).parts[:-1])


def is_loaded_on_resume(name: str) -> bool:
    """Whether the Trainer opens this file of torch.save to resume, with `weights_only=True`."""
    last = base(name)
    return (
        name in OPTIMIZERS | SCHEDULERS | {"scaler.pt"}
        or bool(RNG.fullmatch(name))
        or (last.endswith(".bin") and last.startswith(("pytorch_model", "adapter_model", "value_head")))
    )


def is_torch_save(name: str) -> bool:
    """Whether a file of this name can only be one that torch.save wrote."""
    return is_loaded_on_resume(name) or name == "training_args.bin" or (in_deepspeed_tree(name) and name.endswith(".pt"))


def is_exact_state(name: str) -> bool:
    """Whether a file must be as old as trainer_state.json for a resumed training to go on exactly.

    The generators of other ranks than the first are left out: nothing keeps rank 1 from writing after rank 0 finished.
    """
    return (
        is_weights(name)
        or is_optimizer(name)
        or name in SCHEDULERS
        or base(name) in {"latest", ".metadata", "scaler.pt", "adapter_config.json"}
        or bool(INDEX.fullmatch(name))
        or name in {"rng_state.pth", "rng_state_0.pth"}
    )


def layout(names: Collection[str]) -> str:
    """Which of the layouts of `Verdict.layout` the names are."""
    bases = {base(name) for name in names}
    if "latest" in names or any(TAG.match(name) for name in names):
        return "deepspeed"
    if any(name.endswith(".distcp") for name in names):
        return "fsdp-sharded"
    if "pytorch_model_fsdp.bin" in names or "optimizer.bin" in names:
        return "fsdp-full"
    if not weights(names):
        return "unknown"
    if not any(is_optimizer(name) or name in SCHEDULERS or RNG.fullmatch(name) for name in names):
        return "weights-only"
    if any(ADAPTER.fullmatch(name) for name in bases) and "config.json" not in names:
        return "peft"
    return "sharded" if any(INDEX.fullmatch(name) or SHARD.fullmatch(name) for name in names) else "plain"
