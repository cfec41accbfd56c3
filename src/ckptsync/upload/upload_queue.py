"""What is uploaded next, and what is dropped for it. The snapshots themselves are in the spool."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from ckptsync.checkpoint import Snapshot
from ckptsync.store.artifact import is_best
from ckptsync.upload.spool import Spool

log = logging.getLogger(__name__)


def choose(pending: Sequence[Snapshot], *, keep_all: bool, urgent: bool = False) -> tuple[Snapshot | None, list[Snapshot]]:
    """What to upload next, and what it supersedes. Decides only.

    With `keep_all`, the oldest. Otherwise the newest supersedes every older one, but for those that the Trainer called its best
    when it saved them: these go first, in their order, since no later upload brings them. When it is urgent, the newest is
    first in any case, and the others that are wanted come after it.
    """
    queue = sorted(pending, key=lambda each: each.sequence)
    best = next((each for each in reversed(queue) if is_best(each)), None)
    wanted = [each for each in queue if keep_all or each in (best, queue[-1])]
    first = wanted[-1 if urgent else 0] if wanted else None
    return first, [each for each in queue if each not in wanted]


def over_limit(pending: Sequence[Snapshot], limit: int | None, *, current: Snapshot | None = None) -> list[Snapshot]:
    """The oldest snapshots that have to go for the rest to fit in `limit` bytes.

    The newest always stays, and so does the one that is being uploaded at this moment.
    """
    queue = sorted(pending, key=lambda each: each.sequence)
    excess = sum(each.bytes for each in queue) - limit if limit is not None else 0
    dropped: list[Snapshot] = []
    for each in queue[:-1]:
        if excess > 0 and (current is None or each.name != current.name):
            dropped.append(each)
            excess -= each.bytes
    return dropped


class UploadQueue:
    """The order of uploads from one spool. `current` is the snapshot that is being uploaded at this moment."""

    def __init__(self, spool: Spool) -> None:
        self.current: Snapshot | None = None
        self._spool = spool
        self._choosing = threading.Lock()

    def take(self, *, limit: int | None, keep_all: bool, urgent: bool) -> Snapshot | None:
        """Make the next snapshot the current one and return it; None when nothing is queued. Drops what it supersedes."""
        self.trim(limit)
        with self._choosing:
            pending = self._spool.pending()
            self.current, superseded = choose(pending, keep_all=keep_all, urgent=urgent)
        if superseded:
            self._spool.supersede(superseded, pending[-1], "behind")
            log.info("dropped %s: superseded by %s", ", ".join(each.checkpoint for each in superseded), pending[-1].checkpoint)
        return self.current

    def release(self) -> None:
        """No upload is running any more."""
        self.current = None

    def trim(self, limit: int | None) -> None:
        """Drop the oldest where more is queued than `limit` bytes. To be called whenever something was pinned.

        `take` comes only between two attempts, which may be hours apart.
        """
        if limit is None:
            return
        with self._choosing:
            pending = self._spool.pending()
            for dropped in over_limit(pending, limit, current=self.current):
                self._spool.supersede([dropped], pending[-1], "spool limit")
                log.warning("dropped %s from the queue to stay within the spool limit", dropped.checkpoint)
