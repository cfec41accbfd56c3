"""What runs inside the training process: the hook, the callback and a tiny training program.

Importing this package must stay light: the launcher imports it without torch, and the hook in every Python process of a job.
Its modules may import the standard library, transformers, torch and wandb (inside functions), and of ours only `errors`,
`checkpoint` and `durable`.
"""

from __future__ import annotations

from pathlib import Path

RESUME_FROM = "CKPTSYNC_RESUME_FROM"
"""Environment: the checkpoint folder that the first `train()` of the Trainer with that output folder goes on from."""

OUTPUT_DIR = "CKPTSYNC_OUTPUT_DIR"
"""Environment: the output folder whose Trainer gets a `SyncCallback`, in every rank."""


def hook_path() -> Path:
    """The folder to put first on PYTHONPATH. It holds nothing but `sitecustomize.py`, so that it hides no other module."""
    return Path(__file__).resolve().parent / "hook"
