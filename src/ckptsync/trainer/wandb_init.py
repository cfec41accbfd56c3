"""Which `wandb.init` below a training continues the training's run: the training's own, and no other.

`run` and `resume` give the run's id to the command in WANDB_RUN_ID. The hook takes it out of the environment of the process that
turns out to be the training, so that nothing the training starts becomes that run, and passes it to `wandb.init` instead. From
then on, the program and all that it starts have what the user had set himself, as without ckptsync.

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
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from ckptsync.trainer import ASKED_FOR, RUN_ID, RUN_RESUME, RUN_TAKEN, USERS_OWN, say

_pid: int | None = None
"""The process that took the run id out of its environment; a forked child is another one."""

_entitled = False
"""Whether the next `wandb.init` of that process continues the training's run."""

_barred = False
"""Whether none does, not even one that would by a WANDB_RUN_ID of the user's own."""


def run_id() -> str | None:
    """The id of the training's run, as its environment says."""
    return asked_for("WANDB_RUN_ID")


def asked_for(name: str) -> str | None:
    """What ckptsync set that variable of wandb's to, also when the program has its own value again; else what it is."""
    return os.environ.get(ASKED_FOR[name]) or os.environ.get(name)


def users_own(environ: Mapping[str, str]) -> dict[str, str | None]:
    """The user's own values of the variables that are still as ckptsync set them; None for one that he had not set."""
    if RUN_TAKEN in environ:
        return {}
    ours = [name for name, kept in ASKED_FOR.items() if kept in environ and environ.get(name) == environ[kept]]
    return {name: environ.get(USERS_OWN + name) for name in ours}


def take() -> None:
    """Take the run id out of the environment, for this process alone, if it is the training. Does nothing the second time."""
    global _pid, _entitled
    if RUN_ID not in os.environ or _pid == os.getpid():
        return
    rank, above = os.environ.get("RANK", ""), os.environ.get(RUN_TAKEN)
    _pid, _entitled = os.getpid(), rank in ("", "0") and (above is None or (above == "" and rank == "0"))
    for name, value in users_own(os.environ).items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
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
    global _entitled, _barred
    take()
    before, (_entitled, _barred) = (_entitled, _barred), (False, True)
    try:
        yield
    finally:
        _entitled, _barred = before


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
        given = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        named = _named(given)
        if wandb.run is None and _entitled and named in (None, os.environ[RUN_ID]):
            _entitled = False
            return _continue(original, given)
        if wandb.run is None and _barred and named is None and os.environ.get("WANDB_RUN_ID") == os.environ[RUN_ID]:
            return original(**{**given, "id": secrets.token_hex(4), "resume": "allow"})
        return original(*args, **kwargs)

    init._ckptsync = True  # type: ignore[attr-defined]
    wandb.init = init


def _continue(original: Any, given: Mapping[str, Any]) -> Any:
    """Call `wandb.init` for the training's run, or for the one below it where a process above logs to that run."""
    run_id = os.environ[RUN_ID]
    resume = given.get("resume")
    given = {**given, **_place(given)}
    try:
        return original(**{**given, "id": run_id, "resume": os.environ.get(RUN_RESUME) if resume is None else resume})
    except Exception as error:
        # What wandb-core answers, which this process shares with those above it (wandb 0.31).
        if "is in use" not in str(error) or _named(given):
            raise
    run = original(**{**given, "id": below(run_id), "resume": "allow" if resume is None else resume})
    say(f"a process above this training logs to run {run_id}: the training logs to run {run.id}")
    return run


def _place(given: Mapping[str, Any]) -> dict[str, str]:
    """The project and the entity that ckptsync was given, where the program has only what the user had set in the environment.

    WandbCallback passes the variable on as an argument.
    """
    found = {}
    for key, name in (("project", "WANDB_PROJECT"), ("entity", "WANDB_ENTITY")):
        asked, users = os.environ.get(ASKED_FOR[name]), os.environ.get(USERS_OWN + name)
        if asked and (given.get(key) or os.environ.get(name)) == users:
            found[key] = asked
    return found


def _named(given: Mapping[str, Any]) -> str | None:
    """The run that the program names itself, if it does. One that the user had named in the environment is not the program's."""
    settings = given.get("settings")
    in_settings = settings.get("run_id") if isinstance(settings, dict) else getattr(settings, "run_id", None)
    in_environment = os.environ.get("WANDB_RUN_ID")
    if in_environment == os.environ.get(USERS_OWN + "WANDB_RUN_ID"):
        in_environment = None
    return given.get("resume_from") or given.get("fork_from") or given.get("id") or in_settings or in_environment
