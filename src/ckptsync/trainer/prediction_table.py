"""`PredictionTableCallback`: predictions beside labels, as a table in the run, at evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from ckptsync.trainer import say

KEY = "ckptsync/predictions"
"""The key in the run under which the tables are logged."""

COLUMNS = ("epoch", "step", "input", "prediction", "label")

IGNORED = -100
"""The label that the loss ignores (transformers)."""


class PredictionTableCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Logs the model's predictions for some samples as a `wandb.Table` with the columns epoch, step, input, prediction, label.

    For causal, sequence-to-sequence and sequence classification models. Add it once the Trainer exists:
    `trainer.add_callback(PredictionTableCallback(trainer, tokenizer, dataset))`.

    Args:
        trainer: The Trainer, whose `predict` is called, with its collator and devices.
        tokenizer: Decodes inputs, predictions and labels; usually the Trainer's `processing_class`.
        dataset: Samples like those of the Trainer's eval_dataset. The first `num_samples` are used every time.
        num_samples: The most rows in a table.
        every_epochs: Log a table at the first evaluation after every this many epochs, counted across resumes.

    Does nothing without an active wandb run. An error is reported on one line and doesn't end the training.
    """

    def __init__(self, trainer: Any, tokenizer: Any, dataset: Any, num_samples: int = 100, every_epochs: float = 2) -> None:
        if num_samples < 1 or every_epochs <= 0:
            raise ValueError("num_samples and every_epochs must be positive")
        self._trainer = trainer
        self._tokenizer = tokenizer
        self._samples = [dataset[index] for index in range(min(num_samples, len(dataset)))]
        self._every = every_epochs
        self._done: int | None = None
        self._busy = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the tables that were due before a resume as logged."""
        self._done = int((state.epoch or 0.0) / self._every)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log a table when one is due."""
        due = int((state.epoch or 0.0) / self._every + 1e-6)
        if self._busy or self._done is None or due <= self._done:
            return
        self._busy, self._done = True, due
        try:
            # Every rank must predict, because predict gathers from all of them; one logs.
            rows = self._rows(state)
            if state.is_world_process_zero:
                self._log(rows)
        except Exception as error:
            say(f"no table of predictions: {type(error).__name__}: {error}")
        finally:
            self._busy = False

    def _log(self, rows: list[tuple[Any, ...]]) -> None:
        import wandb

        if wandb.run is not None:
            wandb.run.log({KEY: wandb.Table(columns=list(COLUMNS), data=rows)})

    def _rows(self, state: Any) -> list[tuple[Any, ...]]:
        import torch

        # A loader draws a seed and generation may sample: without the fork, a resumed training would differ from this one.
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            output = self._trainer.predict(self._samples, metric_key_prefix="predictions")
        predictions, labels = _first(output.predictions), _first(output.label_ids)
        return [
            (
                round(float(state.epoch or 0.0), 4),
                int(state.global_step),
                self._text(_values(sample.get("input_ids"))),
                self._predicted(predictions[index], None if labels is None else labels[index]),
                "" if labels is None else self._text(_values(labels[index])),
            )
            for index, sample in enumerate(self._samples)
        ]

    def _predicted(self, scores: Any, label: Any) -> str:
        """The text of generated token ids, of scores per class, or of scores per position and token."""
        if scores.ndim == 2:
            ids = scores.argmax(axis=-1)
            if label is not None and self._is_causal():
                # A causal model's scores at a position predict the next one.
                ids = _shifted(ids, label)
            return self._text(_values(ids))
        if "float" in str(scores.dtype):
            return self._label(int(scores.argmax(axis=-1)))
        return self._text(_values(scores))

    def _is_causal(self) -> bool:
        return not getattr(self._trainer.model.config, "is_encoder_decoder", False)

    def _label(self, number: int) -> str:
        names = getattr(self._trainer.model.config, "id2label", None) or {}
        return str(names.get(number, number))

    def _text(self, values: Sequence[int] | int | float | None) -> str:
        if values is None:
            return ""
        if isinstance(values, float):
            return str(values)
        if isinstance(values, int):
            return self._label(values)
        vocabulary = [each for each in values if each != IGNORED]
        return str(self._tokenizer.decode(vocabulary, skip_special_tokens=True))


def _first(values: Any) -> Any:
    """Some models return more than scores, and some datasets have several labels."""
    return values[0] if isinstance(values, tuple | list) else values


def _shifted(ids: Any, label: Any) -> Any:
    moved = ids.copy()
    moved[1:] = ids[:-1]
    moved[label == IGNORED] = IGNORED
    moved[0] = IGNORED
    return moved


def _values(value: Any) -> Any:
    """Python numbers from an array or tensor."""
    return value.tolist() if hasattr(value, "tolist") else value
