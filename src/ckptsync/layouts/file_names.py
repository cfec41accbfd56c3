"""The file names of the Trainer and its backends, and what each says of a file (transformers 4.57 to 5.24)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from ckptsync.checkpoint import File, fingerprint

OPTIMIZERS = {"optimizer.pt", "optimizer.bin"}
SCHEDULERS = {"scheduler.pt"}
STATE = {"trainer_state.json"}

RNG = re.compile(r"rng_state(?:_(\d+))?\.pth")
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin)")
INDEX = re.compile(r".+\.(?:safetensors|bin)\.index\.json")
MARKER = re.compile(r"\.tmp[A-Za-z0-9]{6}|\.metadata\.tmp|checkpoint-is-incomplete\.txt")
ADAPTER = re.compile(r"adapter_model\.(?:safetensors|bin)")
MODEL = re.compile(r"(?:model|pytorch_model|adapter_model|mm_projector).*\.(?:safetensors|bin)")
"""The Trainer's own weights. Callbacks put others beside them (an average, a teacher), and later."""
FSDP_MODEL = re.compile(r"pytorch_model_fsdp\w*\.bin")
VALUE_HEAD = re.compile(r"value_head\.(?:safetensors|bin)")
CLASSES = re.compile(
    r"(?:.*config.*|.*tokenizer.*|.*vocab.*|special_tokens_map|added_tokens|chat_template.*|normalizer|modules|.*processor.*)\.json"
    r"|(?:merges|vocab.*|spiece.*|.*tokenizer.*|sentencepiece.*|chat_template.*)\.(?:txt|model|jinja)|zero_to_(?:fp32|torch)\.py|README\.md"
)
"""What `save_pretrained` of models, tokenizers and processors writes (transformers, PEFT, sentence-transformers)."""
TAG = re.compile(r"global_step\d+")


def base(name: str) -> str:
    """The last part of a relative path."""
    return PurePosixPath(name).name


def parent(name: str) -> str:
    """The folder part of a relative path, `.` for the checkpoint itself."""
    return str(PurePosixPath(name).parent)


def normalise(name: str) -> str:
    """The name with a placeholder for the step, so that names of two checkpoints can be compared."""
    return TAG.sub("global_step*", name)


def weights(names: Collection[str]) -> set[str]:
    """The model's files: weights, shards, adapters, and those of FSDP and DeepSpeed."""
    return {name for name in names if is_weights(name)}


def is_weights(name: str) -> bool:
    """Whether a file holds the model or a part of it."""
    parts = PurePosixPath(name).parts
    if any(part.startswith("pytorch_model_fsdp_") for part in parts[:-1]):
        return name.endswith(".distcp")
    if in_deepspeed_tree(name):
        return parts[-1].endswith("model_states.pt")
    return bool(MODEL.fullmatch(parts[-1]))


def is_optimizer(name: str) -> bool:
    """Whether a file holds the optimizer or a part of it."""
    parts = PurePosixPath(name).parts
    if any(part.startswith("optimizer_") for part in parts[:-1]):
        return name.endswith(".distcp")
    return name in OPTIMIZERS or in_deepspeed_tree(name)


def in_deepspeed_tree(name: str) -> bool:
    """Whether a file lies in a `global_stepN` folder."""
    return any(TAG.fullmatch(part) for part in PurePosixPath(name).parts[:-1])


def is_of_save(name: str) -> bool:
    """Whether the Trainer, its backends or the classes of model, tokenizer and processor write files of this name.

    Others are a callback's or a user's own: nothing that resumes loads them, and they may hold anything.
    """
    last = base(name)
    return (
        is_exact_state(name)
        or is_torch_save(name)
        or name in STATE
        or bool(RNG.fullmatch(last) or SHARD.fullmatch(last) or VALUE_HEAD.fullmatch(last) or CLASSES.fullmatch(last))
        or last.endswith(".distcp")
    )


def is_loaded_on_resume(name: str) -> bool:
    """Whether the Trainer loads this torch.save file on resume, with `weights_only=True`."""
    last = base(name)
    return (
        name in OPTIMIZERS | SCHEDULERS | {"scaler.pt"}
        or bool(RNG.fullmatch(name))
        or (last.endswith(".bin") and last.startswith(("pytorch_model", "adapter_model", "value_head")))
    )


def is_torch_save(name: str) -> bool:
    """Whether only torch.save writes files of this name."""
    return is_loaded_on_resume(name) or name == "training_args.bin" or (in_deepspeed_tree(name) and name.endswith(".pt"))


def is_exact_state(name: str) -> bool:
    """Whether an exact resume requires this file to be no newer than trainer_state.json.

    Not the RNG states of ranks above 0: nothing keeps rank 1 from writing after rank 0 has finished.
    """
    return (
        is_weights(name)
        or is_optimizer(name)
        or name in SCHEDULERS
        or base(name) in {"latest", ".metadata", "scaler.pt", "adapter_config.json"}
        or bool(INDEX.fullmatch(name))
        or name in {"rng_state.pth", "rng_state_0.pth"}
    )


def saved_print(files: Iterable[File]) -> str:
    """The fingerprint of what every save writes anew: a file that somebody adds to a checkpoint doesn't change it."""
    return fingerprint(file for file in files if is_exact_state(file.path))


def layout(names: Collection[str]) -> str:
    """The layout (see `Verdict`) that these file names make."""
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
