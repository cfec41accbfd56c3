"""`SyncCallback`: what ckptsync adds to a Trainer in every rank, through the hook or by `callbacks=[SyncCallback()]`."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ckptsync import processes, record, secret_detection, state_moves
from ckptsync.errors import PreemptedError
from ckptsync.trainer import ATTEMPT, backfill, dataloader_workers, marker, patch, say, wandb_init
from ckptsync.trainer.preemption_signals import PREEMPTING, Signals
from ckptsync.trainer.ranks import Ranks

PIN_SECONDS = 5.0
"""Seconds to wait for the pin of a last checkpoint that is deleted next: it takes milliseconds where somebody watches."""


_trained: set[str] = set()
"""The output folders into which this process has trained."""


def _harmless(method: Callable[..., None]) -> Callable[..., None]:
    """Report an error in what ckptsync adds on one line: it must never end a training."""

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            say(f"{method.__name__.strip('_')}: {type(error).__name__}: {error}")

    return wrapper


def _acknowledge(output_dir: Path, step: int) -> int:
    """Write down from which step this attempt really began, and return its number.

    Each start is an attempt of its own: the first one takes the number that `run` or `resume` gave it, a launcher's own restart
    (torchrun --max-restarts) and a program that nobody supervises get a new one.
    """
    known = record.read(output_dir)
    attempt = known.attempt
    given = attempt is not None and attempt.id == os.environ.get(ATTEMPT) and known.acknowledged != attempt.number
    if attempt is None or not given:
        attempt = record.begin_attempt(output_dir, resumed_step=step or None)
    folder = os.path.realpath(output_dir)
    again = {"attempt": attempt.number} if folder in _trained else None
    _trained.add(folder)
    record.update(output_dir, acknowledged={"attempt": attempt.number, "step": step}, trained_again=again)
    return attempt.number


def _active_run() -> Any:
    """The wandb run of this process, or None. If there is one, wandb is already imported."""
    return getattr(sys.modules.get("wandb"), "run", None)


def _identity(run: Any) -> dict[str, Any]:
    """What run.json says of the run: as wandb knows it, or as ckptsync gave it where the program logs to a run of its own.

    `run_id` says whose checkpoints these are, and the same command must find them again.
    """
    given = {key: wandb_init.asked_for(f"WANDB_{key.upper()}") for key in ("run_id", "project", "entity")}
    active = {"run_id": getattr(run, "id", None), **{key: getattr(run, key, None) for key in ("project", "entity")}}
    own = ATTEMPT in os.environ and active["run_id"] not in (None, given["run_id"])
    known = given if own else {key: active[key] or given[key] for key in given}
    named = own and active["run_id"] != wandb_init.below(str(given["run_id"]))
    logs_to = {key: active[key] for key in ("project", "run_id")} if named else None
    return {**{key: value for key, value in known.items() if value}, "logs_to": logs_to}


class SyncCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Marks complete checkpoints for the watcher, and saves one at a preemption.

    At the first SIGTERM or SIGUSR1 in any rank, all ranks finish the step, save through the Trainer's normal path, and leave
    `train()` with SystemExit(75). The resumed training is bit-identical: the save lies between two steps, like any other. An
    evaluation that is due at that step runs first, because it advances the random generators. A training that reaches its last
    step ends as if there had been no signal.

    Every rank needs one (the others would wait for a rank without it), and it should be the last callback: those after it don't
    see the `on_save` of the last checkpoint. If the user enabled transformers' own just-in-time checkpoint, that handles SIGTERM.
    """

    def __init__(self) -> None:
        self.reports_to_wandb = False
        """Whether the Trainer logs to W&B itself, which only then may lack rows."""
        self._wrap_train()
        self._signals = Signals()
        self._ranks = Ranks(1)
        self._leaving = False
        self._left = False
        self._attempt: int | None = None
        self._inside = False
        self._folder: Path | None = None
        self._marked: str | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Install the signal handlers, record the training in run.json, and backfill the run's history after a resume."""
        self._leaving = False
        self._marked = None
        self._ranks = Ranks(args.world_size)
        if self._ranks.together:
            theirs = {signal.SIGTERM} if getattr(args, "enable_jit_checkpoint", False) else set()
            self._signals.install(PREEMPTING - theirs)
            dataloader_workers.shield()
        self._relocate_best(args, state)
        members = self._ranks.gather(processes.identity(os.getpid()))
        if state.is_world_process_zero and not state.is_hyper_param_search:
            self._record(args, state, members)
            self._backfill(args, state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Agree with all ranks whether to save and leave after this step. One rank: 0.2 µs; two over gloo: 0.2 ms."""
        if self._agreed(control):
            self._leaving = True
            control.should_save = True
            # Otherwise the losses since the last log line would be lost: the resumed training counts from this step.
            control.should_log = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoint as complete once every rank has saved it; leave if a preemption asked for it."""
        if not self._ranks.together:
            return
        self._leaving = self._leaving or self._agreed(control)
        self._ranks.wait()
        if state.is_world_process_zero and not state.is_hyper_param_search:
            self._mark(args, state.global_step, preempted=self._leaving, though_gone=True)
        if self._leaving and not control.should_training_stop:
            self._leave()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Wait for the last pin at the Trainer's last row, which it logs before it deletes checkpoints for the last time."""
        last = "train_runtime" in (logs or {})
        if last and state.is_world_process_zero and not state.is_hyper_param_search:
            self._await_pin(args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write down that the last step is done, or mark the checkpoint of a just-in-time save, which calls no `on_save`."""
        early = getattr(args, "enable_jit_checkpoint", False) and state.global_step < state.max_steps
        if early and self._ranks.world_size == 1:
            # It saves before the current step, and that step still runs (transformers 5.24).
            for step in (state.global_step, state.global_step - 1):
                self._mark(args, step, preempted=True)
        if state.global_step >= state.max_steps > 0 and state.is_world_process_zero and not state.is_hyper_param_search:
            self._note_end(args, state)
        self.release()

    def release(self, *, raised: bool = False) -> None:
        """Restore the signal handlers, and pass on a signal that came too late for a save. Does nothing after `_leave`.

        Also writes down that `train()` was left, or that an exception was `raised` in it: a rank that is killed can't.
        torchrun sends SIGTERM to the other ranks as soon as the first one has exited, while their wandb may still be sending.
        """
        if not self._left:
            if self._inside or raised:
                self._note_left(raised=raised)
            self._signals.hand_over()
            self._signals.release()

    @_harmless
    def note_uncaught(self) -> None:
        """Write down that an exception which left `train()` ends the program."""
        if self._folder is not None:
            record.update(self._folder, uncaught={"attempt": self._attempt})

    def _agreed(self, control: Any) -> bool:
        wanted = self._signals.received is not None and not control.should_training_stop
        return self._ranks.agree(wanted)

    def _leave(self) -> None:
        """Exit, but only when all ranks are ready to: torchrun kills the others when the first one exits."""
        run = _active_run()
        if run is not None:
            with contextlib.suppress(Exception):
                run.mark_preempting()
        with contextlib.suppress(Exception, SystemExit):
            self._signals.hand_over()
        if self._inside:
            self._note_left(raised=False)
        self._ranks.wait()
        self._left = True
        # sys.exit, not `raise SystemExit`: wandb hooks the function to learn the exit code, and sends its data at exit.
        sys.exit(PreemptedError.exit_code)

    @_harmless
    def _wrap_train(self) -> None:
        """Have `train()` restore the signal handlers when it raises, also without the hook: no callback is called then."""
        from transformers import trainer

        patch.wrap(trainer)

    @_harmless
    def _note_end(self, args: Any, state: Any) -> None:
        record.update(Path(args.output_dir), reached_end={"attempt": self._attempt, "step": state.global_step})

    @_harmless
    def _note_left(self, *, raised: bool) -> None:
        self._inside = False
        if self._folder is not None:
            record.update(self._folder, inside_train=None, raised={"attempt": self._attempt} if raised else None)

    @_harmless
    def _mark(self, args: Any, step: int, *, preempted: bool, though_gone: bool = False) -> None:
        # The run's id counts only where ckptsync gave it: a program may log to any run.
        run_id = wandb_init.run_id() if ATTEMPT in os.environ else None
        written = marker.write(
            Path(args.output_dir),
            step,
            world_size=self._ranks.world_size,
            preempted=preempted,
            run_id=run_id,
            attempt=self._attempt,
            though_gone=though_gone,
        )
        self._marked = written.name if written else self._marked

    @_harmless
    def _await_pin(self, args: Any, state: Any) -> None:
        """Let the watcher pin the last checkpoint before the Trainer deletes it, where only the best one may stay.

        The training may be at its last step, or stop early: by EarlyStoppingCallback or a time limit of its own.
        """
        best, last = state.best_model_checkpoint, self._marked
        if args.save_total_limit == 1 and best and last and Path(best).name != last:
            marker.await_pin(Path(args.output_dir), last, seconds=PIN_SECONDS)

    @_harmless
    def _relocate_best(self, args: Any, state: Any) -> None:
        """Correct the best checkpoint's path on another machine, where the Trainer would forget its best model."""
        best = state.best_model_checkpoint
        if best and not Path(best).is_dir():
            here = Path(args.output_dir) / Path(best).name
            if here.is_dir():
                state.best_model_checkpoint = str(here)
                if state.is_world_process_zero:
                    say(f"the best checkpoint so far is {here}")

    @_harmless
    def _backfill(self, args: Any, state: Any) -> None:
        run = _active_run()
        if run is None or state.global_step == 0 or not self.reports_to_wandb:
            return
        saved_as = marker.run_of(Path(args.output_dir), state.global_step)
        own = saved_as is not None and run.id in (saved_as, wandb_init.below(saved_as))
        steps = backfill.log_missing(run, state.log_history, step=state.global_step, own=own)
        if steps:
            say(f"logged {len(steps)} rows again that the run's history lacked (steps {min(steps)} to {max(steps)})")

    @_harmless
    def _record(self, args: Any, state: Any, members: list[Any]) -> None:
        """Write to run.json: the run, the number of steps, and the process of each rank.

        torchrun starts each rank in a session of its own, so a signal to the process group doesn't reach it.
        """
        run = _active_run()
        values: dict[str, Any] = {"world_size": self._ranks.world_size, "max_steps": state.max_steps}
        values |= {"processes": members, **_identity(run)}
        if getattr(run, "name", None):
            values["run_name"] = run.name
        if secret_detection.recordable(sys.orig_argv):
            values["argv"] = sys.orig_argv
        self._folder = Path(args.output_dir)
        if ATTEMPT not in os.environ:
            state_moves.drop_stray(self._folder)
        self._attempt = _acknowledge(self._folder, state.global_step)
        record.update(self._folder, **values, inside_train={"attempt": self._attempt}, raised=None, uncaught=None)
        self._inside = True
