"""A store for a few requests in this process. Leaves this process's environment and the user's folders as they were."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ckptsync.checkpoint import Run
from ckptsync.config import Connection

if TYPE_CHECKING:
    from ckptsync.store.wandb_store import WandbStore


@contextlib.contextmanager
def open_store(connection: Connection, run: Run) -> Iterator[WandbStore]:
    """Open W&B in this process while the block runs, with the client's own files in a temporary folder."""
    from ckptsync.store.wandb_store import WandbStore

    with _environment_kept(), tempfile.TemporaryDirectory(prefix="ckptsync-", ignore_cleanup_errors=True) as private:
        store = WandbStore(connection, run, Path(private))
        try:
            yield store
        finally:
            store.close()


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo what the client sets: the training is started with this environment later."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
