"""Opens files that somebody else may have put there. Knows nothing of what is in them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TextIO


def open_regular(path: Path, *, errors: str = "strict") -> TextIO:
    """Open a text file for reading. Raises ValueError for what is no regular file: a pipe would block, a device never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a regular file")
    return os.fdopen(descriptor, encoding="utf-8", errors=errors)
