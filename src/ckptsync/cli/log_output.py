"""How a line looks in the journal: with its priority, and without the time and the program's name, which the journal adds."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

import click

RELOADING = "ckptsync.reloading"
"""Set in a context's meta while its command line is parsed again: the log stays as it is."""


def is_journal(stream: TextIO) -> bool:
    """Whether what is written there goes to the journal: systemd names the device and inode of that stream (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class JournalFormatter(logging.Formatter):
    """Puts the priority of syslog before each line, in the form that sd-daemon(3) gives it."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging."""
        level = record.levelno
        number = 7 if level < logging.INFO else 6 if level < logging.WARNING else 4 if level < logging.ERROR else 3
        return "\n".join(f"<{number}>{line}" for line in super().format(record).splitlines())


def set_up(context: click.Context, _parameter: click.Parameter, value: int) -> int:
    if context.meta.get(RELOADING):
        return value
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    handler.setFormatter(JournalFormatter() if is_journal(sys.stderr) else plain)
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("ckptsync").setLevel(logging.DEBUG if value else logging.INFO)
    if value:
        logging.getLogger().setLevel(logging.DEBUG if value > 1 else logging.INFO)
    return value


def quieten(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    if context.meta.get(RELOADING):
        return value
    if value or os.environ.get("WANDB_QUIET", "").lower() == "true" or os.environ.get("WANDB_SILENT", "").lower() == "true":
        logging.getLogger("ckptsync").setLevel(logging.WARNING)
    return value
