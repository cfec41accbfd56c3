"""The final model of a training that reached its end: which folder holds it, and which files it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

from ckptsync import layouts
from ckptsync.checkpoint import File, Snapshot
from ckptsync.errors import NotFoundError


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
    name = PurePath(best).name if best and layouts.loads_best(pinned.content) is not False else None
    if name is None or name == pinned.checkpoint:
        return _model(pinned.content, pinned.step, pinned.files, best=name is not None)
    folder = output_dir / name
    verdict = layouts.inspect(folder)
    if not verdict.complete or verdict.state is None:
        raise NotFoundError(
            f"the best model is in {name}, which is not here: {verdict.problems[0] if verdict.problems else name}"
        )
    return _model(folder, verdict.state.global_step, verdict.files, best=True)


def _model(folder: Path, step: int, files: tuple[File, ...], *, best: bool) -> Model:
    wanted = layouts.model_files(files)
    if not wanted:
        raise NotFoundError(f"{folder} holds no weights that from_pretrained can load")
    return Model(folder, step, wanted, best)
