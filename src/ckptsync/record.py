"""run.json: the run, command and history of starts of the training in an output folder. Knows no store and no process.

Written by `watch`, `run` and `resume`, and completed from inside the training. Unknown keys are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckptsync import durable, locks, processes, state_folder

TRAINING = "training"
"""The file beside run.json with the process that `run` or `resume` started."""

ATTEMPTS_KEPT = 100
"""How many earlier starts run.json remembers: a job may be preempted for weeks."""

SAVES_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a training on its run, counted from 1 across machines.

    `resumed_step` and `resumed_version` say what it went on from, None for a fresh start. `started` (seconds since the epoch) is
    for people to read and decides nothing.
    """

    number: int
    id: str
    started: float
    resumed_step: int | None = None
    resumed_version: str | None = None


@dataclass(frozen=True, slots=True)
class Restarted:
    """A restart from scratch: in which attempt, None where nobody numbered it, and its saves as NAME.PRINT, oldest first."""

    attempt: int | None
    saves: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """What run.json says. A value of the wrong type counts as missing."""

    values: Mapping[str, Any]

    def text(self, key: str) -> str | None:
        """The non-empty string under `key`, or None."""
        value = self.values.get(key)
        return value if isinstance(value, str) and value else None

    @property
    def command(self) -> list[str] | None:
        """The training's command line."""
        value = self.values.get("command")
        return value if isinstance(value, list) and value and all(isinstance(word, str) for word in value) else None

    @property
    def may_record_command(self) -> bool:
        """Whether versions may carry the command in their metadata: not with --no-record-command."""
        return self.values.get("record_command") is not False

    @property
    def world_size(self) -> int | None:
        """The number of training processes."""
        value = self.values.get("world_size")
        return value if isinstance(value, int) and value > 0 else None

    def world_size_at(self, step: int) -> int | None:
        """The number of processes that save a checkpoint of that step; None where only the checkpoint itself can tell.

        Up to the step that the current attempt resumed from, the checkpoints are of earlier attempts, in a world of their own.
        """
        attempt = self.attempt
        older = attempt is not None and attempt.resumed_step is not None and step <= attempt.resumed_step
        return None if older else self.world_size

    @property
    def resumed_step(self) -> int | None:
        """The global step of the last resume; None if there was none."""
        value = self.values.get("resumed_step")
        return value if isinstance(value, int) else None

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The starts of the training that are known in this folder, oldest first."""
        values = self.values.get("attempts")
        found = []
        for value in values if isinstance(values, list) else ():
            with contextlib.suppress(TypeError, KeyError, ValueError, OverflowError):
                found.append(_attempt(value))
        return tuple(sorted(found, key=lambda each: each.number))

    @property
    def attempt(self) -> Attempt | None:
        """The newest start of the training, None where nobody wrote one down."""
        if attempts := self.attempts:
            return attempts[-1]
        # What ckptsync 0.1.0 wrote: the last resume, without a number.
        return Attempt(0, "", self.resumed_at, self.resumed_step) if self.resumed_step is not None else None

    @property
    def restarted(self) -> Restarted | None:
        """What a training saved that restarted from scratch; None if none has in the current attempt."""
        value = self.values.get("restarted")
        if not isinstance(value, dict):
            return None
        attempt, saves = value.get("attempt"), value.get("saves")
        return Restarted(attempt if isinstance(attempt, int) else None, tuple(map(str, saves)) if isinstance(saves, list) else ())

    @property
    def acknowledged(self) -> int | None:
        """The number of the attempt that the training itself acknowledged last."""
        value = self.values.get("acknowledged")
        number = value.get("attempt") if isinstance(value, dict) else None
        return number if isinstance(number, int) else None

    @property
    def handed_over(self) -> int | None:
        """The step of the checkpoint that the hook was to hand to the newest attempt; None where it was to hand over none."""
        value = self.values.get("handed_over")
        step = value.get("step") if isinstance(value, dict) else None
        return step if self._is_of_newest("handed_over") and isinstance(step, int) else None

    @property
    def given_hook(self) -> bool:
        """Whether the newest attempt was started with the hook."""
        return self._is_of_newest("given_hook")

    @property
    def reached_end(self) -> bool:
        """Whether the newest attempt's `train()` came to its last step, as it says: that checkpoint may be deleted by now."""
        return self._is_of_newest("reached_end")

    @property
    def inside_train(self) -> bool:
        """Whether the newest attempt's `train()` began and was never left, neither by its end nor by an exception, as it says."""
        return self._is_of_newest("inside_train")

    @property
    def raised(self) -> bool:
        """Whether an exception left the newest attempt's `train()`, as it says. The program may have caught it."""
        return self._is_of_newest("raised")

    @property
    def uncaught(self) -> bool:
        """Whether an exception that left the newest attempt's `train()` ended the program."""
        return self._is_of_newest("uncaught")

    @property
    def announced(self) -> bool:
        """Whether a `train()` of the newest start has written down its processes."""
        return bool(self.values.get("processes"))

    @property
    def is_command(self) -> bool:
        """Whether rank 0 is the very process that `run` or `resume` started, so that its exit status is the command's."""
        ranks = self.values.get("processes")
        return isinstance(ranks, list) and bool(ranks) and ranks[0] == self.values.get("training")

    @property
    def completed(self) -> bool:
        """Whether the newest attempt came to its last step and then exited with 0: nothing is left to do.

        Not once a later attempt is known from elsewhere: another machine went on, by `--extend` or from an older version.
        """
        value = self.values.get("completed")
        if not (self._is_of_newest("completed") and isinstance(value, dict) and value.get("run") == self.text("run_id")):
            return False
        highest = value.get("highest_attempt")
        return not isinstance(highest, int) or self.highest_attempt <= highest

    @property
    def completed_in(self) -> str | None:
        """The store (`Connection.store`) to which a completed training was uploaded; None where nobody said so."""
        value = self.values.get("completed")
        store = value.get("store") if isinstance(value, dict) else None
        return store if isinstance(store, str) else None

    @property
    def left_undone(self) -> bool:
        """Whether `run` or `resume` started an attempt that came to its last step, and none since came to an exit with 0."""
        reached, completed = self._attempt_of("reached_end"), self._attempt_of("completed")
        return self.values.get("training") is not None and reached > max(completed, -1)

    @property
    def highest_attempt(self) -> int:
        """The highest number of an attempt that is known, here or by `note_highest_attempt`; 0 where there is none."""
        highest = self.values.get("highest_attempt")
        return max([highest if isinstance(highest, int) else 0, *(each.number for each in self.attempts)])

    @property
    def rolled_back(self) -> tuple[int, int] | None:
        """The step to which somebody went back, and the highest attempt of that moment; None where nobody did."""
        value = self.values.get("rolled_back")
        step, attempt = (value.get("step"), value.get("attempt")) if isinstance(value, dict) else (None, None)
        return (step, attempt) if isinstance(step, int) and isinstance(attempt, int) else None

    def _is_of_newest(self, key: str) -> bool:
        return self.attempt is not None and self._attempt_of(key) == self.attempt.number

    def _attempt_of(self, key: str) -> int:
        """The attempt that a note of the training's progress belongs to, -1 where there is none."""
        value = self.values.get(key)
        number = value.get("attempt") if isinstance(value, dict) else None
        return number if isinstance(number, int) else -1

    @property
    def restarted_at(self) -> float | None:
        """As `restarted`, by the clock: what ckptsync 0.1.0 wrote."""
        value = self.values.get("restarted_at")
        return float(value) if isinstance(value, int | float) else None

    @property
    def resumed_at(self) -> float:
        """The time of the last resume, in seconds since the epoch; 0 if there was none."""
        value = self.values.get("resumed_at")
        return float(value) if isinstance(value, int | float) else 0.0


def path_of(output_dir: Path) -> Path:
    """The path of an output folder's run.json."""
    return state_folder.of(output_dir) / "run.json"


def read(output_dir: Path) -> Record:
    """The record of an output folder; empty if there is none yet."""
    values = durable.read_json(path_of(output_dir)) or {}
    training = durable.read_json(path_of(output_dir).with_name(TRAINING)) or {}
    return Record({**values, "training": training["process"]} if training.get("process") else values)


@contextlib.contextmanager
def noting_training(output_dir: Path) -> Iterator[Callable[[int], None]]:
    """Start a training in the block, and then write down its pid by what this yields.

    The file is open before: a program may delete its output folder at its start, and a new name in it would fail that.
    """
    path = path_of(output_dir).with_name(TRAINING)
    with path.open("w", encoding="utf-8") as file:

        def note(pid: int) -> None:
            file.write(json.dumps({"version": 1, "process": processes.identity(pid)}) + "\n")
            file.flush()
            os.fsync(file.fileno())

        yield note


def hook_missing(output_dir: Path) -> int | None:
    """The step that the hook was to hand over, if no Python process of the newest attempt has shown that it had the hook."""
    known = read(output_dir)
    return known.handed_over if known.handed_over is not None and not _hook_seen(output_dir, known) else None


def hook_lost(output_dir: Path) -> bool:
    """Whether the newest attempt was given the hook, and no Python process of it has shown that it had it."""
    known = read(output_dir)
    return known.given_hook and not _hook_seen(output_dir, known)


def _hook_seen(output_dir: Path, known: Record) -> bool:
    """Each Python process writes the attempt's id to the file `hooked` as it starts (`trainer.hook`), also without a Trainer."""
    attempt = known.attempt
    if attempt is None or known.acknowledged == attempt.number:
        return True
    with contextlib.suppress(OSError):
        return (state_folder.of(output_dir) / "hooked").read_text("utf-8", "replace") == attempt.id
    return False


def begin_attempt(output_dir: Path, *, resumed_step: int | None = None, resumed_version: str | None = None) -> Attempt:
    """Write down that the training starts (again), and return the number that its saves carry.

    It is above every attempt that is known here, and above those of `note_highest_attempt`.
    """
    begun: list[Attempt] = []

    def add(values: Mapping[str, Any]) -> dict[str, Any]:
        known = Record(values)
        number = known.highest_attempt + 1
        begun.append(Attempt(number, os.urandom(4).hex(), round(time.time(), 3), resumed_step, resumed_version))
        attempts = [asdict(each) for each in (*known.attempts[-ATTEMPTS_KEPT:], *begun)]
        # The number of processes and the verdict "restarted from scratch" belong to one attempt.
        return {
            "attempts": attempts,
            "world_size": None,
            "restarted": None,
            "restarted_at": None,
            "acknowledged": None,
            "elsewhere": None,
            "handed_over": None,
        }

    change(output_dir, add)
    return begun[0]


def note_completed(output_dir: Path, store: str | None) -> None:
    """Write down that the training of the newest attempt came to its last step and exited with 0, and where its versions are."""

    def add(values: Mapping[str, Any]) -> dict[str, Any]:
        known = Record(values)
        run = known.text("run_id")
        if known.attempt is None:
            return {}
        attempts = {"attempt": known.attempt.number, "highest_attempt": known.highest_attempt}
        return {"completed": {**attempts, "run": run, "store": store}}

    change(output_dir, add)


def note_highest_attempt(output_dir: Path, number: int) -> None:
    """Write down that an attempt of that number is known from elsewhere: from the versions that other machines uploaded."""

    def add(values: Mapping[str, Any]) -> dict[str, Any]:
        known = values.get("highest_attempt")
        return {"highest_attempt": max(number, known)} if isinstance(known, int) else {"highest_attempt": number}

    change(output_dir, add)


def note_rollback(output_dir: Path, step: int | None) -> None:
    """Write down that the training goes back to that step by choice: what was saved above it so far no longer counts.

    None takes that back.
    """

    def add(values: Mapping[str, Any]) -> dict[str, Any]:
        return {"rolled_back": None if step is None else {"step": step, "attempt": Record(values).highest_attempt}}

    change(output_dir, add)


def note_restarted(output_dir: Path, attempt: int | None, save: str) -> None:
    """Write down that this save, NAME.PRINT, is of a training that restarted from scratch."""

    def add(values: Mapping[str, Any]) -> dict[str, Any]:
        before = Record(values).restarted
        saves = [each for each in (before.saves if before and before.attempt == attempt else ()) if each != save]
        return {"restarted": {"attempt": attempt, "saves": [*saves[-SAVES_KEPT:], save]}}

    change(output_dir, add)


def update(output_dir: Path, **values: Any) -> Record:
    """Set these keys, keep the others, drop those given as None. The file is for its owner alone: it holds a command line."""
    return change(output_dir, lambda _: values)


def change(output_dir: Path, decide: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Record:
    """As `update`, with the values decided from what stands there, while nobody else can change it."""
    return state_folder.within(output_dir, lambda folder: _change(output_dir, folder, decide))


def _change(output_dir: Path, folder: Path, decide: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Record:
    # The watcher and the training both update it: without the lock one could lose what the other wrote.
    with locks.exclusive(folder / "run.lock"):
        # It may have been moved into the output folder meanwhile.
        path = path_of(output_dir)
        # Where it can't be read now (EIO), what it says must not be replaced.
        before = durable.load_json(path)
        merged = {"version": 1, **(before or {}), **decide(before or {})}
        merged = {key: value for key, value in merged.items() if value is not None}
        if merged != before:
            durable.write_json(path, merged, mode=0o600)
    return Record(merged)


def _attempt(value: Mapping[str, Any]) -> Attempt:
    step, version = value.get("resumed_step"), value.get("resumed_version")
    return Attempt(
        number=int(value["number"]),
        id=str(value["id"]),
        started=float(value["started"]),
        resumed_step=step if isinstance(step, int) else None,
        resumed_version=version if isinstance(version, str) else None,
    )
