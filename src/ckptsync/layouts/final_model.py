"""The final model of a finished training: which folder holds it, and which of its files `from_pretrained` loads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from ckptsync.checkpoint import File, Snapshot
from ckptsync.errors import NotFoundError
from ckptsync.layouts import file_names
from ckptsync.layouts.folder import list_folder
from ckptsync.layouts.formats import pickle_reader, torch_zip
from ckptsync.layouts.formats.pickle_values import Items
from ckptsync.layouts.formats.stream import Malformed
from ckptsync.layouts.inspection import inspect

ARGUMENTS = "training_args.bin"

_TRAINING = {*file_names.STATE, ARGUMENTS, "scaler.pt", "latest", "zero_to_fp32.py", "zero_to_torch.py"}


@dataclass(frozen=True, slots=True)
class Model:
    """The files of a checkpoint folder that `from_pretrained` needs, and their step. `best`: load_best_model_at_end chose it."""

    folder: Path
    step: int
    files: tuple[File, ...]
    best: bool

    @property
    def bytes(self) -> int:
        """The total size of the files."""
        return sum(file.size for file in self.files)


def find(pinned: Snapshot, output_dir: Path) -> Model:
    """The model that a finished training ends with: the last one, or with load_best_model_at_end the best one.

    Raises NotFoundError if that checkpoint is not on this machine, or holds no weights that `from_pretrained` can load.
    """
    best = pinned.state.best_checkpoint if pinned.state else None
    name = PurePath(best).name if best and loads_best(pinned.content) is not False else None
    if name is None or name == pinned.checkpoint:
        return _model(pinned.content, pinned.step, pinned.files, best=name is not None)
    folder = output_dir / name
    verdict = inspect(folder)
    if not verdict.complete or verdict.state is None:
        reason = verdict.problems[0] if verdict.problems else "no training state"
        raise NotFoundError(f"the best model's checkpoint {folder} is missing or incomplete: {reason}")
    return _model(folder, verdict.state.global_step, verdict.files, best=True)


def _model(folder: Path, step: int, files: tuple[File, ...], *, best: bool) -> Model:
    wanted = model_files(files)
    if not wanted:
        raise NotFoundError(f"{folder} holds no weights that from_pretrained can load")
    return Model(folder, step, wanted, best)


def model_files(files: Iterable[File]) -> tuple[File, ...]:
    """Weights, config, tokenizer and whatever else is not training state; empty if `from_pretrained` can load no weights.

    It cannot load the shards of DeepSpeed and FSDP.
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
    """Whether the training runs with `load_best_model_at_end`; None if training_args.bin does not say.

    The file is read as data: nothing that it names is imported.
    """
    try:
        folder = list_folder(path)
        with folder.open(ARGUMENTS) as stream:
            content = pickle_reader.read(torch_zip.check(stream, folder.files[ARGUMENTS].size, deep=False))
    except (OSError, KeyError, Malformed, MemoryError):
        return None
    for call in content.calls:
        value = call.state.get("load_best_model_at_end") if isinstance(call.state, Items) else None
        if isinstance(value, bool):
            return value
    return None
