"""One machine at a time follows a run: a heartbeat in the store keeps a second one out, and ends with this process.

No clock of two machines is compared. The next machine starts after a clean end, or once the heartbeat has not moved for
`SILENCE` seconds, by the server's own time or as seen from here.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.errors import LockedError, TransientStoreError
from ckptsync.store import holder
from ckptsync.store.holder import HolderNotes, Sign

log = logging.getLogger(__name__)

BEAT = 15.0
"""Seconds between two heartbeats."""

SILENCE = 60.0
"""Seconds without a heartbeat after which its machine counts as lost."""

POLL = 1.0


class Heartbeat:
    """That this process follows the run. `leaving` is asked at each heartbeat whether a preemption notice came.

    An unreachable store keeps nobody from training: it is asked once more at the next heartbeat.
    """

    def __init__(self, connection: Connection, run: Run, output_dir: Path) -> None:
        self.leaving: Callable[[], bool] = lambda: False
        self._notes = HolderNotes(connection, run)
        self._here = holder.here(output_dir)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._warned = False

    @property
    def beating(self) -> bool:
        """Whether this process holds the run."""
        return self._thread is not None

    def require_alone(self, run: Run, stop: threading.Event | None = None) -> None:
        """Return when no other machine or folder follows the run; `run` has its entity. Raises LockedError if one does.

        Waits for one that is leaving, and for a silent one until it counts as lost, or until `stop` is set.
        """
        self._notes.run = run
        stop = stop or threading.Event()
        last, since = self._other(), time.monotonic()
        if last and not _is_silent(last):
            log.warning("run %s is followed by %s: waiting until it ends or is silent for %.0f s", run, last.holder, SILENCE)
        while last and not _is_silent(last) and time.monotonic() - since < SILENCE and not stop.wait(POLL):
            found = self._other(last)
            if found and found.running and found.beat != last.beat:
                if found.holder and not found.holder.leaving:
                    raise LockedError(
                        f"run {run} is already followed by ckptsync on {found.holder}",
                        hint="Stop it there first, or add --force to go on beside it.",
                    )
                since = time.monotonic()
            last = found

    def start(self, run: Run) -> None:
        """Hold the run from now on, whoever held it before. Does nothing where it does already."""
        if self._thread is None:
            self._notes.run = run
            self._beat(take_over=True)
            self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
            self._thread.start()

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Hold the run no longer when the block ends."""
        try:
            yield
        finally:
            self._over.set()
            if self._thread is not None:
                self._thread.join()
                with contextlib.suppress(TransientStoreError):
                    if not self._is_taken(self._notes.read()):
                        self._notes.end()

    def _other(self, before: Sign | None = None) -> Sign | None:
        """What is known of another holder, None where there is none; `before` where the store doesn't answer now."""
        try:
            found = self._notes.read()
        except TransientStoreError as error:
            log.debug("%s", error)
            return before
        gone = found.holder is None or not self._is_taken(found) or found.holder.has_ended(self._here)
        return None if gone else found

    def _is_taken(self, found: Sign) -> bool:
        return found.holder is not None and found.holder.is_another(self._here)

    def _keep_beating(self) -> None:
        while not self._over.wait(BEAT):
            self._beat()

    def _beat(self, *, take_over: bool = False) -> None:
        """Renew the heartbeat. Where another machine took the run over, report that once and leave the note to it."""
        own = replace(self._here, leaving=self.leaving())
        try:
            found = self._notes.beat(own if take_over else None)
            if self._is_taken(found) and not self._warned:
                self._warned = True
                log.error("run %s is also followed by ckptsync on %s: their checkpoints mix", self._notes.run, found.holder)
            elif not self._is_taken(found) and found.holder != own:
                self._notes.beat(own)
        except TransientStoreError as error:
            log.debug("%s", error)


def _is_silent(sign: Sign) -> bool:
    return sign.age is not None and sign.age >= SILENCE
