"""What a training is started with: its command line and its environment. Starts nothing and knows no store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.errors import UsageError
from ckptsync.trainer import ASKED_FOR, ATTEMPT, OUTPUT_DIR, RESUME_FROM, RUN_TAKEN, USERS_OWN, hook_path, wandb_init

_OURS = frozenset({"WANDB_SERVICE", RESUME_FROM, OUTPUT_DIR, ATTEMPT, RUN_TAKEN, *ASKED_FOR.values()})

PLACEHOLDER = "{checkpoint}"


def fill(command: Sequence[str], checkpoint: Path | None) -> list[str]:
    """The command with `{checkpoint}` replaced by the path. Raises UsageError if it has one and there is no checkpoint."""
    if checkpoint is None and any(PLACEHOLDER in word for word in command):
        raise UsageError(
            f"the command contains {PLACEHOLDER}, but there is nothing to resume from",
            hint="Leave the placeholder out: the hook passes the checkpoint to Trainer.train().",
        )
    return [word.replace(PLACEHOLDER, str(checkpoint)) for word in command]


def environment(
    run: Run,
    connection: Connection | None,
    output_dir: Path,
    *,
    checkpoint: Path | None,
    exists: bool,
    attempt: str | None = None,
    hook: bool = True,
    base: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """The training's environment: which run it logs to, and the hook that passes it the checkpoint.

    With `exists`, the run is on the server already: wandb must resume it and may not create another. WANDB_SERVICE is removed,
    or the training would share our wandb-core and die with it (wandb 0.31, measured). `attempt` is the id of this start in
    run.json. WANDB_LOG_MODEL is false, because ckptsync uploads the checkpoints. With the hook, WANDB_RUN_ID gets no further than
    the training itself (`trainer.wandb_init`), which has what the user had set from then on; without it, everything that the
    training starts has it too.
    """
    values = {key: value for key, value in base.items() if key not in _OURS and not key.startswith(USERS_OWN)}
    values |= connection.environment() if connection else {}
    values |= {
        "WANDB_RUN_ID": run.run_id,
        "WANDB_RESUME": "must" if exists else "allow",
        "WANDB_PROJECT": run.project,
        "WANDB_LOG_MODEL": "false",
        OUTPUT_DIR: str(output_dir),
    }
    if run.entity:
        values["WANDB_ENTITY"] = run.entity
    if attempt:
        values[ATTEMPT] = attempt
    if hook:
        values["PYTHONPATH"] = os.pathsep.join(filter(None, [str(hook_path()), base.get("PYTHONPATH")]))
        values |= _to_give_back(values, {**base, **wandb_init.users_own(base)})
        if checkpoint:
            values[RESUME_FROM] = str(checkpoint)
    return values


def _to_give_back(ours: Mapping[str, str], users: Mapping[str, str | None]) -> dict[str, str]:
    """What the hook needs to continue the run with our variables, and to give those that the user had set back to the program."""
    found: dict[str, str] = {}
    for name, kept in ASKED_FOR.items():
        own = users.get(name)
        if own is not None:
            found |= {kept: ours[name], USERS_OWN + name: own}
        elif name in ("WANDB_RUN_ID", "WANDB_RESUME"):
            found[kept] = ours[name]
    return found
