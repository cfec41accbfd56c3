"""More file events than the kernel keeps: they are hints, and scans are the truth."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Followed, Note
from tests.server_process import ServerProcess

EVENTS = 100_000
PER_FILE = 4
"""Created, opened, closed, deleted; inotify's queue holds 16,384 (fs.inotify.max_queued_events)."""


@pytest.fixture
def followed(tmp_path: Path, server: ServerProcess) -> Iterator[Followed]:
    each = Followed(tmp_path, server, "flooded", "--backlog", "all")
    each.start()
    yield each
    each.kill()


def test_a_burst_of_events_that_nobody_could_keep_loses_nothing(followed: Followed, note: Note) -> None:
    first = followed.save()
    followed.durable(first)
    os.kill(followed.pid, signal.SIGSTOP)
    try:
        for number in range(EVENTS // PER_FILE):
            path = followed.output_dir / f"noise-{number}"
            path.touch()
            path.unlink()
        saved = followed.save()
    finally:
        os.kill(followed.pid, signal.SIGCONT)

    followed.durable(saved)
    followed.durable(followed.save())

    note(f"{EVENTS} file events at once", "the checkpoint saved after them was found and uploaded", followed.damage())
