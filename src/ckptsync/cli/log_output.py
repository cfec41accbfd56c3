"""Log lines on stderr: with a time on a terminal, with a syslog priority in the systemd journal."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

import click

from ckptsync.cli.visible import visible

RELOADING = "ckptsync.reloading"
"""Set in a context's meta while its command line is parsed again: logging is not set up anew."""


def is_journal(stream: TextIO) -> bool:
    """Whether a stream goes to the journal: JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class TerminalFormatter(logging.Formatter):
    """Shows what a store says without obeying it."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging."""
        return visible(super().format(record), lines=True)


class JournalFormatter(TerminalFormatter):
    """Prefixes each line with its syslog priority, as sd-daemon(3) specifies."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging."""
        level = record.levelno
        number = 7 if level < logging.INFO else 6 if level < logging.WARNING else 4 if level < logging.ERROR else 3
        return "\n".join(f"<{number}>{line}" for line in super().format(record).splitlines())


def set_up(context: click.Context, _parameter: click.Parameter, value: int) -> int:
    if context.meta.get(RELOADING):
        return value
    handler = logging.StreamHandler(sys.stderr)
    plain = TerminalFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
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
