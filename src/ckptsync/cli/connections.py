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
    """The store to talk to for as long as the block lasts: the embedded server with --local, else what the environment names."""
    if not local:
        yield config.connection()
        return
    from ckptsync.server.local import local_server

    with local_server() as server:
        # The entity of another server means nothing to this one.
        os.environ.pop("WANDB_ENTITY", None)
        yield Connection(server.url, server.api_key)


@contextlib.contextmanager
def connected_if_online(*, local: bool) -> Iterator[Connection | None]:
    """The same; None, said once, where WANDB_MODE or WANDB_DISABLED keeps everything here. Then no key is needed."""
    mode = config.upload_mode()
    if mode == "online":
        with connected(local=local) as connection:
            yield connection
        return
    what = "nothing is uploaded" if mode == "disabled" else "checkpoints wait in .ckptsync/spool for a start that is online"
    log.warning("W&B is %s by WANDB_MODE or WANDB_DISABLED: %s", mode, what)
    yield None
