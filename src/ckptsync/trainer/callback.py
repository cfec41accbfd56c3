"""`SyncCallback`: what ckptsync adds to a Trainer. It runs in every rank."""

from __future__ import annotations

from transformers import TrainerCallback


class SyncCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Tells the watcher what the training does."""

    def release(self) -> None:
        """Give back what was taken for the time of a training."""
