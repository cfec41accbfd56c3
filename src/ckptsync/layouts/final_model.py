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
    """What `from_pretrained` needs: files of a checkpoint folder, with the step at which they were saved."""

    folder: Path
    step: int
    files: tuple[File, ...]
    best: bool

    @property
    def bytes(self) -> int:
        """The sum of the file sizes."""
        return sum(file.size for file in self.files)


def final(pinned: Snapshot, output_dir: Path) -> Model:
    """The model that the training of a finished checkpoint ends with: with load_best_model_at_end the best one.

    Raises NotFoundError when that checkpoint isn't here, or holds only shards that `from_pretrained` can't load.
    """
    best = pinned.state.best_checkpoint if pinned.state else None
    name = PurePath(best).name if best and loads_best(pinned.content) is not False else None
    if name is None or name == pinned.checkpoint:
        return _model(pinned.content, pinned.step, pinned.files, best=name is not None)
    folder = output_dir / name
    verdict = inspect(folder)
    if not verdict.complete or verdict.state is None:
        raise NotFoundError(
            f"the best model is in {name}, which is not here: {verdict.problems[0] if verdict.problems else name}"
        )
    return _model(folder, verdict.state.global_step, verdict.files, best=True)


def _model(folder: Path, step: int, files: tuple[File, ...], *, best: bool) -> Model:
    wanted = model_files(files)
    if not wanted:
        raise NotFoundError(f"{folder} holds no weights that from_pretrained can load")
    return Model(folder, step, wanted, best)


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
    for call in content.calls:
        value = call.state.get("load_best_model_at_end") if isinstance(call.state, Items) else None
        if isinstance(value, bool):
            return value
    return None
