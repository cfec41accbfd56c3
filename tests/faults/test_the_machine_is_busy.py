"""A training takes the processor, and what uploads gets a small share of it: slow is not the same as stalled."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Followed, Note
from tests.integration.conftest import descendants, wait_for
from tests.server_process import ServerProcess

STALL = 5.0
SIZE = 250_000_000
"""Bytes of each of two files. wandb-core hashes 60 MB a second with the share that it gets here, so that takes about 8 s."""

RUNS, RESTS = 0.02, 0.18


@pytest.fixture
def followed(tmp_path: Path, server: ServerProcess) -> Iterator[Followed]:
    each = Followed(tmp_path, server, "busy", "--stall-timeout", str(STALL))
    each.start()
    yield each
    each.kill()


@contextlib.contextmanager
def slowed(watcher: int) -> Iterator[None]:
    """Let the client's own process, wandb-core, run for a tenth of the time while the block lasts."""
    over = threading.Event()

    def slow() -> None:
        while not over.wait(RUNS):
            cores = [pid for pid in descendants(watcher) if "wandb-core" in _name(pid)]
            for number, pause in ((signal.SIGSTOP, RESTS), (signal.SIGCONT, 0.0)):
                for pid in cores:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(pause)

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


@pytest.mark.slow
def test_a_client_that_hashes_for_longer_than_the_stall_timeout_is_not_ended(followed: Followed, note: Note) -> None:
    followed.durable(followed.save())
    saved = followed.save(size=SIZE)
    wait_for(lambda: f"uploading {saved}" in followed.said(), what="the upload")

    with slowed(followed.pid):
        followed.durable(saved, seconds=120)

    assert "no progress" not in followed.said()
    note(f"processor taken, {2 * SIZE / 1e6:.0f} MB to hash", "1 attempt; uploaded", followed.damage())
