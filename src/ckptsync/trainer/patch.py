"""Patches `Trainer.train` in the training process: it resumes from the placed checkpoint and has a `SyncCallback`.

A subclass that overrides `train()` calls the base class in the end (TRL, Seq2SeqTrainer), so patching that one is enough. Nothing
here may break a training that would run without it, except one that would silently start over.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from ckptsync.errors import IntegrityError
from ckptsync.trainer import OUTPUT_DIR, RESUME_FROM, marker, ranks, say, wandb_init

_resumed: set[str] = set()
"""The checkpoints that a `train()` of this process resumed from. A second `train()` must not go back to them."""


def wrap(module: Any) -> None:
    """Patch `Trainer.train` in the module `transformers.trainer`, once."""
    wandb_init.take()
    trainer_class = module.Trainer
    original = trainer_class.train
    if getattr(original, "_ckptsync", False):
        return

    @functools.wraps(original)
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        given, (args, kwargs) = (args, kwargs), _resume_arguments(self, args, kwargs)
        if (args, kwargs) != given:
            _stop_at_last_step(self)
        callback = _callback_of(self) or _add_callback(self)
        if callback is not None:
            ranks.announce()
        raised = False
        try:
            with _entitlement(self, args, kwargs, watched=callback is not None):
                return original(self, *args, **kwargs)
        except Exception:
            raised = True
            if callback is not None:
                _note_if_uncaught(callback)
            raise
        finally:
            vars(self).pop("set_initial_training_values", None)
            if callback is not None:
                callback.release(raised=raised)

    train._ckptsync = True  # type: ignore[attr-defined]
    trainer_class.train = train


def _note_if_uncaught(callback: Any) -> None:
    """Have the callback write down that an exception which left `train()` ended the program, if nobody catches it.

    Behind a pipe or in a script, the exit status that ckptsync sees is another program's.
    """
    original = sys.excepthook

    def excepthook(*error: Any) -> None:
        callback.note_uncaught()
        original(*error)

    sys.excepthook = excepthook


def _entitlement(
    trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, watched: bool
) -> contextlib.AbstractContextManager[None]:
    """Which `wandb.init` in this call of `train()` continues the training's run: that of the watched Trainer, outside a trial."""
    folder = os.environ.get(OUTPUT_DIR)
    if _trial(args, kwargs) is not None or (folder and not _same_folder(trainer.args.output_dir, folder)):
        return wandb_init.unentitled()
    return wandb_init.entitled() if watched else contextlib.nullcontext()


def _resume_arguments(trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `train()`, with the checkpoint added if this call must resume from it.

    That is the first `train()` of the Trainer whose output folder holds the checkpoint, and never a trial of a hyperparameter
    search. Raises IntegrityError if the checkpoint is missing, because the training would start over.
    """
    wanted = _after_elastic_restart(os.environ.get(RESUME_FROM))
    if not wanted or wanted in _resumed or _trial(args, kwargs) is not None:
        return args, kwargs
    if not _same_folder(trainer.args.output_dir, Path(wanted).parent):
        _say(f"not resuming the Trainer of {trainer.args.output_dir}: the checkpoint to resume from is {wanted}")
        return args, kwargs
    _resumed.add(wanted)
    given = args[0] if args else kwargs.get("resume_from_checkpoint")
    if given is not None and not isinstance(given, bool):
        if _same_folder(Path(given).parent, trainer.args.output_dir):
            if not _same_folder(given, wanted):
                _say(f"the program resumes from {given} itself, so {wanted} is not used")
            return args, kwargs
        # A base checkpoint in the command is where the training began; by now it has checkpoints of its own.
        _say(f"resuming from {wanted}, the training's own checkpoint, and not from {given}")
    if not (Path(wanted) / "trainer_state.json").is_file():
        raise IntegrityError(f"the checkpoint to resume from is missing: {wanted}")
    if args:
        return (wanted, *args[1:]), kwargs
    return args, {**kwargs, "resume_from_checkpoint": wanted}


def _after_elastic_restart(launched_from: str | None) -> str | None:
    """The checkpoint to resume from, as of this start of the process: torchrun restarts it in the environment of the launch.

    By then the training has saved further checkpoints; the newest that every rank has finished counts.
    """
    folder = os.environ.get(OUTPUT_DIR)
    if not folder or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return launched_from
    newest = marker.newest_finished(Path(folder))
    return str(newest) if newest else launched_from


def _stop_at_last_step(trainer: Any) -> None:
    """Make a `train()` that resumes from its last step take no further one, which the Trainer does in the middle of an epoch.

    So a program that was killed after `train()`, in its final evaluation, can be started again to do that.
    """
    original: Any = getattr(trainer, "set_initial_training_values", None)
    try:
        step = json.loads((Path(os.environ[RESUME_FROM]) / "trainer_state.json").read_text("utf-8"))["global_step"]
    except (OSError, ValueError, KeyError):
        return

    def values(*args: Any, **kwargs: Any) -> Any:
        epochs, steps_per_epoch, *rest = original(*args, **kwargs)
        return min(epochs, step // steps_per_epoch) if step >= rest[-1] else epochs, steps_per_epoch, *rest

    if original is not None:
        trainer.set_initial_training_values = values


def _trial(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The trial of a hyperparameter search that this call of `train()` is; None outside one."""
    return args[1] if len(args) > 1 else kwargs.get("trial")


def _callback_of(trainer: Any) -> Any:
    """The SyncCallback that the program gave to the Trainer, if it did."""
    module: Any = sys.modules.get("ckptsync.trainer.callback")
    for callback in trainer.callback_handler.callbacks if module else ():
        if isinstance(callback, module.SyncCallback):
            callback.reports_to_wandb = _reports_to_wandb(trainer)
            return callback
    return None


def _reports_to_wandb(trainer: Any) -> bool:
    kinds = [kind for callback in trainer.callback_handler.callbacks for kind in type(callback).__mro__]
    return any(kind.__name__ == "WandbCallback" for kind in kinds)


def _add_callback(trainer: Any) -> Any:
    """Add a SyncCallback to the Trainer of the watched output folder, and return it; None for another Trainer."""
    folder = os.environ.get(OUTPUT_DIR)
    if not folder:
        return None
    try:
        from ckptsync.trainer.callback import SyncCallback

        if not _same_folder(trainer.args.output_dir, folder):
            _say(f"not watching the Trainer of {trainer.args.output_dir}: the watched output folder is {folder}")
            _note_elsewhere(Path(folder), trainer)
            return None
        callback = SyncCallback()
        callback.reports_to_wandb = _reports_to_wandb(trainer)
        trainer.add_callback(callback)
        _take_over_uploads(trainer.callback_handler.callbacks)
    except Exception as error:
        _say(f"no checkpoint markers and no save at a signal: {type(error).__name__}: {error}")
        return None
    return callback


def _note_elsewhere(watched: Path, trainer: Any) -> None:
    """Write down for `ckptsync run` where this Trainer saves: if no other one saves in the watched folder, that is a mistake."""
    from ckptsync import record

    if os.environ.get("RANK", "0") == "0":
        record.update(watched, elsewhere=os.path.realpath(trainer.args.output_dir))


def _take_over_uploads(callbacks: list[Any]) -> None:
    """Disable WandbCallback's own upload, which a program may have enabled: it would block the training loop."""
    for callback in callbacks:
        wanted: Any = getattr(callback, "_log_model", None)
        if type(callback).__name__ == "WandbCallback" and getattr(wanted, "is_enabled", False):
            callback._log_model = type(wanted)("false")
            _say(f"the program sets WANDB_LOG_MODEL={wanted.value}: ckptsync uploads the checkpoints instead")


def _same_folder(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _say(text: str) -> None:
    """One line on stderr, from rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        say(text)
