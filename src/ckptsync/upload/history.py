"""history.jsonl: what happened in an output folder, one line per event. A diary: nothing is decided by it but what was pruned."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ckptsync import durable
from ckptsync.checkpoint import Snapshot
from ckptsync.regular_file import open_regular

log = logging.getLogger(__name__)


class History:
    """Events such as seen, pinned, uploaded, superseded, preempted and resumed, in the order in which they happened."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock

    def record(self, event: str, pinned: Snapshot | None = None, **fields: Any) -> None:
        """Add an event. A full disk is logged and stops nothing."""
        about = {"checkpoint": pinned.checkpoint, "print": pinned.fingerprint, "step": pinned.step} if pinned else {}
        line = {"time": round(self._clock(), 3), "event": event, **about, **fields}
        try:
            durable.append_line(self._path, json.dumps(line))
        except OSError as error:
            log.warning("not written to %s: %s: %s", self._path.name, event, error)

    def pruned(self) -> Iterator[str]:
        """The versions that were deleted after a receipt, as NAME:vN."""
        with contextlib.suppress(OSError, ValueError), open_regular(self._path, errors="replace") as lines:
            for line in lines:
                if '"pruned"' in line:
                    with contextlib.suppress(ValueError):
                        yield str(json.loads(line).get("artifact"))
