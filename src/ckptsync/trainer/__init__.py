"""What runs inside the training process: hook → patch → callback, which marks complete checkpoints and saves at a signal.

`job.launch` passes the checkpoint to resume from in an environment variable and puts the hook on PYTHONPATH. patch hands that
checkpoint to `Trainer.train()`. marker tells `upload` that a save is complete. forked_children and dataloader_workers keep the
signal handlers out of the program's other processes, and wandb_init keeps the run id from its other runs. A program that works
without ckptsync must work with it. Imports of this package stay light: torch and transformers are imported only once the
training has. tiny is a small training for demos and tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

RESUME_FROM = "CKPTSYNC_RESUME_FROM"
"""Environment variable: the checkpoint from which the first `train()` of the Trainer with that output folder resumes."""

OUTPUT_DIR = "CKPTSYNC_OUTPUT_DIR"
"""Environment variable: the output folder whose Trainer gets a `SyncCallback`, in every rank."""

ATTEMPT = "CKPTSYNC_ATTEMPT"
"""Environment variable: the id of the attempt, in run.json, that this training was started as. The first `train()` takes it."""

RUN_ID, RUN_RESUME = "CKPTSYNC_TRAINING_RUN", "CKPTSYNC_TRAINING_RESUME"
"""Environment variables for the hook: the id of the training's run, and what `wandb.init` gets as `resume`."""

ASKED_FOR = {
    "WANDB_RUN_ID": RUN_ID,
    "WANDB_RESUME": RUN_RESUME,
    "WANDB_PROJECT": "CKPTSYNC_TRAINING_PROJECT",
    "WANDB_ENTITY": "CKPTSYNC_TRAINING_ENTITY",
}
"""wandb's variables that name the training's run, and where the hook finds what ckptsync set them to.

The last two are there only where the user had set the variable himself.
"""

USERS_OWN = "CKPTSYNC_USERS_"
"""Prefix of such a variable's name: what the user had set it to, which the hook gives back to the program."""

RUN_TAKEN = "CKPTSYNC_TRAINING_RANK"
"""Environment variable below the process that took the run id for itself: its RANK, empty if it had none."""


def hook_path() -> Path:
    """The folder to put first on PYTHONPATH. It holds only `sitecustomize.py`, so it hides no other module."""
    return Path(__file__).resolve().parent / "hook"


def say(text: str) -> None:
    """Write one line to stderr, unless the training was started without one."""
    if sys.stderr is not None:
        sys.stderr.write(f"ckptsync: {text}\n")
