"""One machine at a time follows a run: a heartbeat in the store keeps a second one out, and ends with this process.

No clock decides: the next machine starts after a clean end, or once it has seen for itself that the heartbeat doesn't move. An
old heartbeat alone proves nothing: while the store is unreachable, nobody can renew one.
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

WATCHED = 35.0
"""Seconds for which a heartbeat that is older than that has to stay still while the store answers.

That is longer than the pause between two heartbeats of a machine that lives: BEAT and holder.TIMEOUT, or 30 s of a wandb client.
"""

POLL = 1.0

LAST_WORDS = 5.0
"""Seconds for which the clients of a process that was killed may still send something."""


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

    def require_alone(self, run: Run, stop: threading.Event | None = None, *, training: bool) -> None:
        """Return when no other machine or folder follows the run; `run` has its entity. Raises LockedError if one does.

        With `training`, this process will train, so no training on another machine may log to the run either. Waits for one that
        is leaving, and for a silent one until it counts as lost, or until `stop` is set.
        """
        self._notes.run = run
        for look in (self._other, self._other_training) if training else (self._other,):
            self._await_silence(look, stop or threading.Event())

    def _await_silence(self, look: Callable[[], Sign | None], stop: threading.Event) -> None:
        last = _seen(look)
        if last is None:
            return
        log.warning("run %s is %s: waiting until that ends or is silent for %.0f s", self._notes.run, last, SILENCE)
        begun = since = time.monotonic()
        while last and time.monotonic() - since < _required_silence(last) and not stop.wait(POLL):
            try:
                found = look()
            except TransientStoreError as error:
                log.debug("%s", error)
                since = time.monotonic()
                continue
            if found and found.running and found.beat != last.beat:
                leaving = found.holder is not None and found.holder.leaving
                if not leaving and time.monotonic() - begun > LAST_WORDS:
                    raise LockedError(
                        f"run {self._notes.run} is already {found}",
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

    def _other(self) -> Sign | None:
        """What is known of another holder of the run; None where there is none."""
        found = self._notes.read()
        gone = found.holder is None or not self._is_taken(found) or found.holder.has_ended(self._here)
        return None if gone else found

    def _other_training(self) -> Sign | None:
        """The same of a training on another host that logs to the run. On this one, the locks of its folder tell."""
        found = self._notes.read_training()
        return found if found.running and found.host not in (None, self._here.process["host"]) else None

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


def _seen(look: Callable[[], Sign | None]) -> Sign | None:
    """What a look finds; None where the store doesn't answer."""
    try:
        return look()
    except TransientStoreError as error:
        log.debug("%s", error)
        return None


def _required_silence(sign: Sign) -> float:
    """Seconds for which a heartbeat must be seen not to move, by this machine's own monotonic clock."""
    return WATCHED if sign.age is not None and sign.age >= SILENCE else SILENCE
