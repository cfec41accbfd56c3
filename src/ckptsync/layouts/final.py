"""Which files of a checkpoint make the model that `from_pretrained` loads, and whether the training ends with its best one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ckptsync.checkpoint import File
from ckptsync.layouts import file_names
from ckptsync.layouts.folder import Malformed, list_folder
from ckptsync.layouts.formats import pickle_reader, torch_zip

ARGUMENTS = "training_args.bin"

_TRAINING = {*file_names.STATE, ARGUMENTS, "scaler.pt", "latest", "zero_to_fp32.py", "zero_to_torch.py"}


def model_files(files: Iterable[File]) -> tuple[File, ...]:
    """Weights, config, tokenizer, and whatever else isn't there for the training; empty where no weights can be loaded.

    Shards of DeepSpeed and FSDP are no weights that `from_pretrained` takes.
    """
    found = tuple(file for file in files if not _is_training(file.path))
    return found if any(file_names.MODEL.fullmatch(file_names.base(file.path)) for file in found) else ()


def _is_training(name: str) -> bool:
    return (
        name in _TRAINING | file_names.SCHEDULERS
        or file_names.is_optimizer(name)
        or bool(file_names.RNG.fullmatch(name))
        or file_names.in_deepspeed_tree(name)
        or bool(file_names.FSDP_MODEL.fullmatch(name))
        or file_names.base(name) == ".metadata"
        or name.endswith(".distcp")
    )


def loads_best(path: Path) -> bool | None:
    """Whether the checkpoint's training runs with `load_best_model_at_end`; None where training_args.bin doesn't tell.

    The file is read as data: nothing that it names is imported.
    """
    try:
        folder = list_folder(path)
        with folder.open(ARGUMENTS) as stream:
            content = pickle_reader.read(torch_zip.check(stream, folder.files[ARGUMENTS].size, deep=False))
    except (OSError, KeyError, Malformed, MemoryError):
        return None
    for made in content.made:
        value = made.state.get("load_best_model_at_end") if isinstance(made.state, pickle_reader.Items) else None
        if isinstance(value, bool):
            return value
    return None
