"""How a long transfer is shown: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import click

from ckptsync.store.contract import Progress

log = logging.getLogger(__name__)

LINE_INTERVAL = 10.0
"""Seconds between two lines where there is no terminal."""


class Terminal:
    """stderr, as a job shows itself there."""

    def progress(self, what: str) -> AbstractContextManager[Progress]:
        """See `shown`."""
        return shown(what)

    def say(self, text: str) -> None:
        """Print a line, whatever the log level."""
        click.echo(text, err=True)


@contextlib.contextmanager
def shown(what: str) -> Iterator[Progress]:
    """A progress callback whose calls become visible as bytes, MB/s and time left while the block lasts."""
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
    """Logs how far it is, at most once an interval."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = self._told = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._told < LINE_INTERVAL:
                return
            self._told = now
        rate = done / (now - self._started)
        left = (total - done) / rate if rate else 0.0
        log.info("%s: %d of %d bytes, %.1f MB/s, %.0f s left", self._what, done, total, rate / 1e6, left)
