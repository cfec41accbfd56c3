"""The wandb client of this process: its settings, its log-in and the sync run. The only module of the store that imports wandb.

The process that uses it belongs to ckptsync: wandb's folders are pointed to a private place, its own retries are cut short so
that `retrying` decides, and the live training run is never initialised here (a second `wandb.init` on it would mark it as
finished; wandb 0.31, measured).
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.errors import RejectedError
from ckptsync.store.client_errors import translated

PRIVATE = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR", "WANDB_CONFIG_DIR")
INHERITED = (
    *("WANDB_SERVICE", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_MODE"),
    *("WANDB_SWEEP_ID", "WANDB_NOTES", "WANDB_TAGS", "WANDB_RESUME_FROM", "WANDB_FORK_FROM"),
)
"""A training's variables about its own run; inherited, they would make this process that run."""

DELETED = "previously created and deleted"
"""What the server says of the id of a deleted run (upsertBucket)."""

SYNC_RUNS = 20
"""How many deleted sync runs are passed over."""

log = logging.getLogger(__name__)


class Client:
    """The client of one process: its state is process-wide, so make one only.

    `names` are those that the user chose; `translated` ignores them when it classifies an error.

    `private` is a folder for the files that the client writes about itself; the caller deletes it.
    """

    def __init__(self, connection: Connection, run: Run, private: Path) -> None:
        for name in INHERITED:
            os.environ.pop(name, None)
        for name in PRIVATE:
            folder = private / name.lower()
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[name] = str(folder)
        os.environ |= connection.environment() | {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}

        import wandb
        from wandb.errors import term

        self.wandb = wandb
        self._connection = connection
        self._run = run
        self._sync_run: Any = None
        self.names = _names(run)
        self.settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_graphql_retry_max=1,
            x_graphql_retry_wait_min_seconds=0.2,
            x_graphql_retry_wait_max_seconds=1.0,
            x_file_transfer_retry_max=1,
            x_file_transfer_retry_wait_min_seconds=0.2,
            x_file_transfer_retry_wait_max_seconds=1.0,
            init_timeout=30.0,
            finish_timeout=15.0,
        )
        # Settings silence a run; this silences what the client prints without one ("Adding directory to artifact").
        term.termsetup(self.settings, None)
        self._api: Any = None

    def check(self, run: Run) -> Run:
        """The run with its entity filled in; from now on it is the run of this client. Raises RejectedError."""
        with self.translated("the log-in"):
            # Also where the entity is given: making the client checks the key.
            client = self.api()
            entity = run.entity or client.default_entity
        if not entity:
            raise RejectedError("the W&B key belongs to no entity", hint="Give --entity, or set WANDB_ENTITY.")
        self._run = Run(run.run_id, run.project, entity)
        self.know(self._run)
        return self._run

    def know(self, run: Run) -> None:
        """Add what the user called a run, its project and its entity to `names`."""
        self.names |= _names(run)

    def api(self) -> Any:
        """The public API, logged in."""
        if self._api is None:
            with self.translated("the log-in"):
                self.wandb.setup(settings=self.settings)
                overrides = {"base_url": self._connection.base_url, "project": self._run.project}
                if self._run.entity:
                    overrides["entity"] = self._run.entity
                self._api = self.wandb.Api(overrides=overrides, api_key=self._connection.api_key, timeout=20)
        return self._api

    def entity_run(self) -> Run:
        """The run with its entity filled in; logs in when the entity isn't known yet."""
        return self._run if self._run.entity else self.check(self._run)

    def sync_run(self, run: Run) -> Any:
        """The run `ckptsync-<run_id>`, which logs what is uploaded; started on first use.

        The id of a deleted run can't be used again, so the next one is `ckptsync-<run_id>-2`.
        """
        for number in range(1, SYNC_RUNS + 1):
            if self._sync_run is None:
                run_id = f"ckptsync-{run.run_id}" + (f"-{number}" if number > 1 else "")
                try:
                    self._sync_run = self._start_sync_run(run, run_id)
                except Exception as error:
                    if DELETED not in str(error) or number == SYNC_RUNS:
                        raise
                    log.warning("run %s was deleted from the server: uploading with a new one", run_id)
        return self._sync_run

    def _start_sync_run(self, run: Run, run_id: str) -> Any:
        return self.wandb.init(
            entity=run.entity,
            project=run.project,
            id=run_id,
            name=run_id,
            group=run.run_id,
            job_type="checkpoint-sync",
            resume="allow",
            settings=self.settings,
        )

    def close(self) -> None:
        """End the sync run and the client's own process."""
        with contextlib.suppress(Exception):
            if self._sync_run is not None:
                self._sync_run.finish()
        self.wandb.teardown()

    def translated(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Turn every error of the client in the block into one of ckptsync's."""
        return translated(what, self.names)


def _names(run: Run) -> set[str]:
    """The names that the user chose."""
    return {run.run_id, run.project, run.entity or ""}
