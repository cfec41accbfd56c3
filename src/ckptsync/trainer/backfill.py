"""Backfills the rows that a killed wandb client never sent, in the live run itself.

The client sends rows about every 15 s (wandb 0.31, measured), so a kill loses those of the last seconds, or all of a short
training. The checkpoint's log_history has every one of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STEP = "train/global_step"
COUNT = "ckptsync/preemptions"
RESUMED = "ckptsync/resumed_from_step"

SECONDS = 60.0
"""How long the comparison may delay the training. Some thousands of rows arrive per second."""

_SUMMARY_ONLY = frozenset({"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"})
"""What WandbCallback writes to the summary only (transformers 4.57 and 5.x)."""

_done: set[str] = set()
"""The runs that were compared in this process. A training may begin several times, with smaller batches or a second `train()`."""


def log_missing(run: Any, log_history: Sequence[Mapping[str, Any]], *, step: int, own: bool = False) -> list[int]:
    """Log again the rows up to the resumed step that the server lacks, and log that step as resumed.

    Returns the steps of those rows. Does nothing unless the run was resumed, or the checkpoint is its `own`, saved when the run
    was on another server: a new run that starts from another run's checkpoint has no gap. Nor the second time in a process. The
    step counter of a program that counts it itself (`wandb.log(…, step=…)`) is never pushed ahead, since its own rows would be
    rejected. Raises what the public API raises, and TimeoutError; then only the resumed step is logged.
    """
    if not (run.resumed or own) or run.offline or run.id in _done:
        return []
    _done.add(run.id)
    server = _Server(run)
    # Explicit steps can't go back, and rows of the same step become one.
    first = 0 if server.counts_rows else run.starting_step
    rows = []
    try:
        rows = _missing(server, [entry for entry in log_history if first <= entry.get("step", 0) <= step])
    finally:
        # The run.summary of a resumed run starts as the server has it.
        count = int(run.summary.get(COUNT) or 0) + 1
        for row in _by_step([*rows, {COUNT: count, STEP: step}]) if first <= step else []:
            run.log(row, **({} if server.counts_rows else {"step": int(row[STEP]), "commit": COUNT in row}))
        run.summary[COUNT] = count
        run.summary[RESUMED] = step
    return [int(row[STEP]) for row in rows]


def _by_step(rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The rows with those of a step made one: more rows than steps would push ahead a counter that stands at no row yet."""
    merged: dict[int, dict[str, Any]] = {}
    for row in rows:
        merged.setdefault(int(row[STEP]), {}).update(row)
    return merged.values()


def _missing(server: _Server, entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows that the server lacks, as WandbCallback would have logged them, in their order."""
    rows = []
    for entry in entries:
        row = _row(entry)
        if row and not server.has(row):
            rows.append(row)
    return rows


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of log_history as a row of the run; empty if it holds only a summary."""
    from transformers.integrations.integration_utils import rewrite_logs

    values = {key: value for key, value in entry.items() if key != "step" and key not in _SUMMARY_ONLY}
    if not values.keys() - {"epoch"}:
        return {}
    return {**rewrite_logs(values), STEP: entry["step"]}


def _kind(row: Mapping[str, Any]) -> str:
    """The key that identifies a row within its step, which may have one row of the training and some of evaluations."""
    keys = sorted(row.keys() - {STEP, "train/epoch"})
    return "train/loss" if "train/loss" in row else keys[0]


def _number(value: Any) -> str:
    """A value for a comparison, also where it isn't finite, which JSON has as a string; empty if it is no number."""
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return ""


class _Server:
    """The rows that the run has on the server, fetched once for each kind of row."""

    def __init__(self, run: Any) -> None:
        import wandb

        self._run = wandb.Api().run(f"{run.entity}/{run.project}/{run.id}")
        self._rows: dict[str, set[tuple[int, str]]] = {}
        self._deadline = time.monotonic() + SECONDS

    @property
    def counts_rows(self) -> bool:
        """Whether wandb counts the rows of the run, as it does for WandbCallback, and no program numbers them."""
        lines = getattr(self._run, "historyLineCount", None)
        return lines is None or lines == self._run.lastHistoryStep + 1

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether this row is there, with its value: another Trainer may have logged to the run before, from step 1 on too."""
        key = _kind(row)
        if key not in self._rows:
            self._rows[key] = set(self._scan(key))
        return (int(row[STEP]), _number(row[key])) in self._rows[key]

    def _scan(self, key: str) -> Iterable[tuple[int, str]]:
        for row in self._run.scan_history(keys=[STEP, key]):
            if time.monotonic() > self._deadline:
                raise TimeoutError(f"the run's history could not be compared in {SECONDS:g} s")
            yield int(row[STEP]), _number(row[key])
