"""The run that a user named, and its versions in the store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ckptsync import config, connections
from ckptsync.checkpoint import Run, Version
from ckptsync.errors import NotFoundError
from ckptsync.restore import sources
from ckptsync.store.retrying import INTERACTIVE, retry
from ckptsync.store.session import open_store
from ckptsync.store.wandb_store import WandbStore


@dataclass(frozen=True, slots=True)
class Found:
    """A run, its versions, the alias that the user gave, and the open store."""

    run: Run
    alias: str | None
    versions: list[Version]
    store: WandbStore


@contextlib.contextmanager
def found(run_text: str, *, project: str | None, entity: str | None, local: bool, empty: bool = False) -> Iterator[Found]:
    """Find a run's versions. Raises NotFoundError for an unknown run and, unless `empty`, for one without versions."""
    with connections.connected(local=local) as connection:
        run, alias = config.parse_run(run_text, project=project, entity=entity)
        with open_store(connection, run) as store:
            run = retry(lambda: store.check(run), what="the log-in", patience=INTERACTIVE)
            known = retry(lambda: sources.find_versions(store, run), what="the list of versions", patience=INTERACTIVE)
            if not known:
                # Distinguish a run without checkpoints from one that doesn't exist.
                retry(lambda: store.run_state(run), what="the look-up of the run", patience=INTERACTIVE)
                if not empty:
                    raise NotFoundError(
                        f"run {run} has no checkpoint yet",
                        hint="Upload its checkpoints with `ckptsync watch` or `ckptsync push`.",
                    )
            yield Found(run, alias, known, store)
