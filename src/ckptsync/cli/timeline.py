"""What `demo` and `drill` print: a timeline of the rehearsal and the result of the comparison. Also the folder that they use."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from ckptsync.rehearsal.comparison import Equality


class Timeline:
    """Lines with the seconds since the rehearsal began."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Print what has just happened."""
        click.echo(f"{time.monotonic() - self._started:7.1f} s  {text}")


def show_comparison(results: Sequence[Equality]) -> bool:
    """Print one line per compared part. True if all are identical."""
    for each in results:
        click.echo(f"          {each.part:<13} {'identical' if each.equal else 'DIFFERENT'}   {each.detail}")
    return all(each.equal for each in results)


@contextlib.contextmanager
def rehearsal_folder(keep: Path | None, command: str) -> Iterator[Path]:
    """The new folder that the user asked to keep, else a temporary one."""
    if keep:
        keep.mkdir(parents=True)
        yield keep.absolute()
    else:
        with tempfile.TemporaryDirectory(prefix=f"ckptsync-{command}-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
