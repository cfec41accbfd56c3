"""How an output folder is watched: what `watch`, `run` and `resume` take, and what the daemon and the uploader make of it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from ckptsync import config, record
from ckptsync.checkpoint import Run
from ckptsync.errors import UsageError
from ckptsync.store.retrying import FOR_EVER, Patience
from ckptsync.upload.retention import Retention
from ckptsync.upload.settings import UploadSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """How to watch and upload: durations in seconds, sizes in bytes, the rate in bytes per second."""

    backlog: str | None
    spool_limit: int | None
    quiet_period: float
    stall_timeout: float
    keep_last: int | None
    keep_best: bool
    keep_every: int | None
    name_by: str
    record_command: bool
    nice: bool
    max_upload_rate: int | None

    def upload_settings(
        self, *, retry_for: float | None = None, flush_for: float | None = None, once: bool = False
    ) -> UploadSettings:
        """How uploads go. With `retry_for` None it never gives up on an unreachable store, with `flush_for` not at the end."""
        return UploadSettings(
            keep_all=self.backlog == "all" or (once and self.backlog is None),
            limit=self.spool_limit,
            stall=self.stall_timeout,
            patience=FOR_EVER if retry_for is None else Patience(first=0.5, longest=15.0, give_up_after=retry_for),
            flush_for=flush_for,
            keep=Retention(self.keep_last, self.keep_best, self.keep_every),
            only_model=config.log_model() == "end",
            mode=config.upload_mode(),
            yielding=self.nice,
            max_rate=self.max_upload_rate or None,
        )

    def stem(self, run: Run, output_dir: Path) -> str:
        """What the artifact is named after. Raises UsageError if the run's name is needed but unknown."""
        if self.name_by == "run-id":
            return run.run_id
        name = os.environ.get("WANDB_NAME") or record.read(output_dir).text("run_name")
        if not name:
            raise UsageError("--name-by run-name needs the run's name", hint="Set WANDB_NAME to the name that the training uses.")
        return name

    def note(self, output_dir: Path) -> None:
        """Record in run.json what applies to every upload from this folder, and warn of a WANDB_LOG_MODEL that conflicts."""
        keep = Retention(self.keep_last, self.keep_best, self.keep_every)
        record.update(output_dir, record_command=None if self.record_command else False, keep=str(keep) if keep else None)
        wanted = config.log_model()
        if wanted == "false":
            log.warning("ignoring WANDB_LOG_MODEL=false: this command uploads checkpoints")
        elif wanted == "end":
            log.warning(
                "WANDB_LOG_MODEL=end: only the final model is uploaded; a training lost with this machine cannot be resumed"
            )
