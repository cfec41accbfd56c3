"""Progress of a transfer: a bar on a terminal, a log line at intervals elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import click

from ckptsync.sizes import size_of
from ckptsync.store.contract import Progress

log = logging.getLogger(__name__)

LINE_INTERVAL = 10.0
"""Seconds between two log lines without a terminal."""


class Terminal:
    """The user's terminal, on stderr."""

    def progress(self, what: str) -> AbstractContextManager[Progress]:
        """See `shown`."""
        return shown(what)

    def say(self, text: str) -> None:
        """Print a line, whatever the log level."""
        click.echo(text, err=True)


@contextlib.contextmanager
def shown(what: str) -> Iterator[Progress]:
    """A progress callback that shows bytes, MB/s and time left while the block runs."""
    if sys.stderr.isatty():
        with _bar(what) as progress:
            yield progress
    else:
        yield _Lines(what)


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


class _Lines:
    """Logs the progress at most once per interval."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = self._logged = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._logged < LINE_INTERVAL:
                return
            self._logged = now
        rate = done / (now - self._started)
        left = (total - done) / rate if rate else 0.0
        log.info("%s: %s of %s, %s/s, %.0f s left", self._what, size_of(done), size_of(total), size_of(rate), left)
