"""Which `wandb.init` below a training continues the training's run: the training's own, and no other.

`run` and `resume` give the run's id to the command in WANDB_RUN_ID. The hook takes it out of the environment of the process that
turns out to be the training, so that nothing the training starts becomes that run, and passes it to `wandb.init` instead.

A process is the training if it is the first one, on the way from the command, that imports wandb or the Trainer: shells and most
launchers import neither. Where a launcher does, its rank 0 is the training. A process that calls `train()` of the Trainer with
the watched output folder always is, and a `train()` of another Trainer never. Where a process above it took the run for one of
its own and logs to it, the training continues `below(run)`. Without the hook, the variable is all there is, and reaches every
process.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Iterator
from typing import Any

from ckptsync.trainer import RUN_ID, RUN_RESUME, RUN_TAKEN, say

_pid: int | None = None
"""The process that took the run id out of its environment; a forked child is another one."""

_entitled = False
"""Whether the next `wandb.init` of that process continues the training's run."""


def run_id() -> str | None:
    """The id of the training's run, as its environment says."""
    return os.environ.get(RUN_ID) or os.environ.get("WANDB_RUN_ID")


def take() -> None:
    """Take the run id out of the environment, for this process alone, if it is the training. Does nothing the second time."""
    global _pid, _entitled
    if RUN_ID not in os.environ or _pid == os.getpid():
        return
    rank, above = os.environ.get("RANK", ""), os.environ.get(RUN_TAKEN)
    _pid, _entitled = os.getpid(), rank in ("", "0") and (above is None or (above == "" and rank == "0"))
    if os.environ.get("WANDB_RUN_ID") == os.environ[RUN_ID]:
        for name in ("WANDB_RUN_ID", "WANDB_RESUME"):
            os.environ.pop(name, None)
    os.environ[RUN_TAKEN] = rank


def below(run_id: str) -> str:
    """The id of the training's run where a process above the training logs to the run `run_id`. It is the same at every start."""
    return f"{run_id}-training"


@contextlib.contextmanager
def entitled() -> Iterator[None]:
    """While the block runs, a `wandb.init` of this process continues the training's run, whatever came before."""
    global _entitled
    take()
    before, _entitled = _entitled, os.environ.get("RANK", "0") == "0"
    try:
        yield
    finally:
        # Used up in the block, or still to be used by the program after it.
        _entitled = before and _entitled


@contextlib.contextmanager
def unentitled() -> Iterator[None]:
    """While the block runs, no `wandb.init` of this process continues the training's run."""
    global _entitled
    take()
    before, _entitled = _entitled, False
    try:
        yield
    finally:
        _entitled = before


def wrap(wandb: Any) -> None:
    """Patch `wandb.init` in the module `wandb`, once. What a program sets itself takes precedence."""
    take()
    original = wandb.init
    if RUN_ID not in os.environ or getattr(original, "_ckptsync", False):
        return

    @functools.wraps(original)
    def init(*args: Any, **kwargs: Any) -> Any:
        global _entitled
        take()
        if not _entitled or wandb.run is not None or _names_a_run(original, args, kwargs):
            return original(*args, **kwargs)
        _entitled = False
        return _continue(original, args, kwargs)

    init._ckptsync = True  # type: ignore[attr-defined]
    wandb.init = init


def _continue(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call `wandb.init` for the training's run, or for the one below it where a process above logs to that run."""
    run_id = os.environ[RUN_ID]
    resume = kwargs.get("resume")
    try:
        return original(*args, **{**kwargs, "id": run_id, "resume": os.environ.get(RUN_RESUME) if resume is None else resume})
    except Exception as error:
        # What wandb-core answers, which this process shares with those above it (wandb 0.31).
        if "is in use" not in str(error):
            raise
    run = original(*args, **{**kwargs, "id": below(run_id), "resume": "allow" if resume is None else resume})
    say(f"a process above this training logs to run {run_id}: the training logs to run {run.id}")
    return run


def _names_a_run(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the program says itself which run it means."""
    given = inspect.signature(original).bind_partial(*args, **kwargs).arguments
    settings = given.get("settings")
    in_settings = settings.get("run_id") if isinstance(settings, dict) else getattr(settings, "run_id", None)
    in_arguments = any(given.get(name) for name in ("id", "resume_from", "fork_from"))
    return bool(in_arguments or in_settings or "WANDB_RUN_ID" in os.environ)
