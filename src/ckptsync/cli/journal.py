"""How a line looks in the journal: with its priority, and without the time and the program's name, which the journal adds."""

from __future__ import annotations

import logging
import os
from typing import TextIO


def reads(stream: TextIO) -> bool:
    """Whether what is written there goes to the journal: systemd names the device and inode of that stream (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class Formatter(logging.Formatter):
    """Puts the priority of syslog before each line, in the form that sd-daemon(3) gives it."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging."""
        level = record.levelno
        number = 7 if level < logging.INFO else 6 if level < logging.WARNING else 4 if level < logging.ERROR else 3
        return "\n".join(f"<{number}>{line}" for line in super().format(record).splitlines())
