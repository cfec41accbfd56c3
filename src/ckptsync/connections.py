"""The connection that a command or a function uses: the embedded server where it is asked for, else the environment's."""

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
    """The connection to the store while the block runs: the embedded server with `local`, else from the environment."""
    if not local:
        yield config.connection()
        return
    from ckptsync.server.local import local_server

    with local_server() as server:
        # An entity of another server does not exist on this one.
        os.environ.pop("WANDB_ENTITY", None)
        yield Connection(server.url, server.api_key)


@contextlib.contextmanager
def environment_of(*, local: bool) -> Iterator[Connection]:
    """The same, with the variables of this process set to it: a `wandb.init` in the block goes there too."""
    before = dict(os.environ)
    with connected(local=local) as connection:
        os.environ.update(connection.environment())
        try:
            yield connection
        finally:
            for name in {*connection.environment(), "WANDB_ENTITY"}:
                os.environ.pop(name, None)
                if name in before:
                    os.environ[name] = before[name]


@contextlib.contextmanager
def connected_if_online(*, local: bool) -> Iterator[Connection | None]:
    """As `connected`, but None with a warning if WANDB_MODE or WANDB_DISABLED turns uploads off. No key is needed then."""
    mode = config.upload_mode()
    if mode == "online":
        with connected(local=local) as connection:
            yield connection
        return
    what = "nothing is uploaded" if mode == "disabled" else "checkpoints are queued in .ckptsync/spool until ckptsync runs online"
    log.warning("W&B is %s (WANDB_MODE or WANDB_DISABLED): %s", mode, what)
    yield None


def without_session() -> dict[str, str]:
    """This environment without the variables that would make a child join this process's wandb session."""
    return {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
