"""The connection that a command uses: the embedded server with --local, else the one that the environment names."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from ckptsync import config
from ckptsync.config import Connection

log = logging.getLogger(__name__)


@contextlib.contextmanager
def connected(*, local: bool) -> Iterator[Connection]:
    """The connection to the store while the block runs: the embedded server with --local, else from the environment."""
    if not local:
        yield config.connection()
        return
    from ckptsync.server.local import local_server

    with local_server() as server:
        # An entity of another server does not exist on this one.
        os.environ.pop("WANDB_ENTITY", None)
        yield Connection(server.url, server.api_key)


@contextlib.contextmanager
def connected_if_online(*, local: bool) -> Iterator[Connection | None]:
    """The same, but None with a warning if WANDB_MODE or WANDB_DISABLED turns uploads off. No key is needed then."""
    mode = config.upload_mode()
    if mode == "online":
        with connected(local=local) as connection:
            yield connection
        return
    what = "nothing is uploaded" if mode == "disabled" else "checkpoints are queued in .ckptsync/spool until ckptsync runs online"
    log.warning("W&B is %s (WANDB_MODE or WANDB_DISABLED): %s", mode, what)
    yield None
