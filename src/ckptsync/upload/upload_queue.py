"""What is uploaded next, and what is dropped for it. The snapshots themselves are in the spool."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ckptsync.checkpoint import Snapshot
from ckptsync.store.artifact import is_best
from ckptsync.upload.spool import Spool

log = logging.getLogger(__name__)

TRIES_IN_ROW = 3
"""Failed attempts after which a snapshot goes behind the others: one that cannot be sent must not keep the newest waiting."""


def choose(
    pending: Sequence[Snapshot],
    *,
    keep_all: bool,
    urgent: bool = False,
    failures: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Snapshot | None, list[Snapshot]]:
    """What to upload next, and what it supersedes. Decides only.

    With `keep_all`, the oldest. Otherwise the newest supersedes every older one, but for those that the Trainer called its best
    when it saved them: these go first, in their order, since no later upload brings them. When it is urgent, the newest is
    first in any case, and the others that are wanted come after it. `failures` counts the failed attempts of each name: after
    every few of them, the others have a turn.
    """
    queue = sorted(pending, key=lambda each: each.sequence)
    best = next((each for each in reversed(queue) if is_best(each)), None)
    wanted = [each for each in queue if keep_all or each in (best, queue[-1])]
    turns = sorted(wanted, key=lambda each: (failures.get(each.name, 0) // TRIES_IN_ROW, each.sequence))
    first = wanted[-1] if wanted and urgent else turns[0] if turns else None
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
    """The order of uploads from one spool. `current` is the snapshot that is being uploaded at this moment.

    What is parked is part of the queue but for its turn: it is superseded and counts for the limit like the rest.
    """

    def __init__(self, spool: Spool) -> None:
        self.current: Snapshot | None = None
        self._spool = spool
        self._choosing = threading.Lock()
        self._failures: Counter[str] = Counter()

    def take(self, *, limit: int | None, keep_all: bool, urgent: bool) -> Snapshot | None:
        """Make the next snapshot the current one and return it; None when nothing is queued. Drops what it supersedes."""
        self.trim(limit=limit, keep_all=keep_all)
        with self._choosing:
            self.current, _ = choose(self._spool.pending(), keep_all=keep_all, urgent=urgent, failures=self._failures)
        return self.current

    def note_failure(self, snapshot: Snapshot) -> None:
        """An attempt to upload it failed, and may be repeated."""
        self._failures[snapshot.name] += 1

    def release(self) -> None:
        """No upload is running any more."""
        self.current = None

    def trim(self, *, limit: int | None, keep_all: bool) -> None:
        """Drop what is superseded, and the oldest where more is queued than `limit` bytes; never the current one.

        To be called whenever something was pinned: `take` comes only between two attempts, which may be hours apart, and every
        pin keeps its files on the disk.
        """
        with self._choosing:
            queue = self._queue()
            _, superseded = choose(queue, keep_all=keep_all)
            dropped = [each for each in superseded if self.current is None or each.name != self.current.name]
            if dropped:
                self._spool.supersede(dropped, queue[-1], "behind")
                log.info("dropped %s: superseded by %s", ", ".join(each.checkpoint for each in dropped), queue[-1].checkpoint)
            rest = [each for each in queue if each not in dropped]
            for each in over_limit(rest, limit, current=self.current):
                self._spool.supersede([each], queue[-1], "spool limit")
                log.warning("dropped %s from the queue to stay within the spool limit", each.checkpoint)

    def _queue(self) -> list[Snapshot]:
        parked = [pinned for pinned, _ in self._spool.parked()]
        return sorted([*self._spool.pending(), *parked], key=lambda each: each.sequence)
