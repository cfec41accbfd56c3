"""Predictions beside labels, as a table in the run, at evaluations."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

KEY = "ckptsync/predictions"
"""The key in the run under which the tables are logged."""

COLUMNS = ("epoch", "step", "input", "prediction", "label")

IGNORED = -100
"""The label of what counts for no loss (transformers)."""


class PredictionTableCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Logs what the model predicts for some samples as a `wandb.Table` with the columns epoch, step, input, prediction, label.

    For causal, sequence-to-sequence and sequence classification models. Add it when the Trainer is made:
    `trainer.add_callback(PredictionTableCallback(trainer, tokenizer, dataset))`.

    Args:
        trainer: The Trainer, whose `predict` is used, so that its collator and its devices are.
        tokenizer: Decodes inputs, predictions and labels; the Trainer's `processing_class` will do.
        dataset: Samples as the Trainer's eval_dataset has them. The first `num_samples` are taken, the same ones each time.
        num_samples: How many rows a table has at most.
        every_epochs: A table at the first evaluation after each so many epochs; after a resume it goes on counting.

    Without an active wandb run it does nothing. An error in it is told on one line and doesn't end the training.
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
        """After a resume, what was logged before counts as logged."""
        self._done = int((state.epoch or 0.0) / self._every)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log a table when one is due."""
        due = int((state.epoch or 0.0) / self._every + 1e-6)
        if self._busy or self._done is None or due <= self._done:
            return
        self._busy, self._done = True, due
        try:
            # Every rank predicts, since the ranks gather what they predict; one logs.
            rows = self._rows(state)
            if state.is_world_process_zero:
                self._log(rows)
        except Exception as error:
            sys.stderr.write(f"ckptsync: no table of predictions: {type(error).__name__}: {error}\n")
        finally:
            self._busy = False

    def _log(self, rows: list[tuple[Any, ...]]) -> None:
        import wandb

        if wandb.run is not None:
            wandb.run.log({KEY: wandb.Table(columns=list(COLUMNS), data=rows)})

    def _rows(self, state: Any) -> list[tuple[Any, ...]]:
        import torch

        # A loader draws a seed and generation may sample: without this a resumed training would not equal this one.
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
        """Of token ids (generated), of a score for each class, or of a score for each token at each place."""
        if scores.ndim == 2:
            ids = scores.argmax(axis=-1)
            if label is not None and self._is_causal():
                # What the model says at a place is about the next one.
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
    """Some models return more than the scores, and some datasets have more than one label."""
    return values[0] if isinstance(values, tuple | list) else values


def _shifted(ids: Any, label: Any) -> Any:
    moved = ids.copy()
    moved[1:] = ids[:-1]
    moved[label == IGNORED] = IGNORED
    moved[0] = IGNORED
    return moved


def _values(value: Any) -> Any:
    """Numbers of Python for whatever holds them."""
    return value.tolist() if hasattr(value, "tolist") else value
