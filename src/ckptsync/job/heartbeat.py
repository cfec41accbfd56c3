"""One machine at a time follows a run: a heartbeat in the store keeps a second one out, and ends with this process.

No clock decides: the next machine starts after a clean end, or once it has seen for itself that the heartbeat doesn't move. An
old heartbeat alone proves nothing: while the store is unreachable, nobody can renew one.

The note that names the holder is a fencing token. A machine that was paused for so long that another one took the run finds that
one's note in the place of its own, whether it has ended since or not, and has lost the run for good.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.errors import LockedError, PermanentStoreError, StoreError
from ckptsync.store import run_holder
from ckptsync.store.run_holder import Holder, HolderNotes, Sign
from ckptsync.upload.daemon import Daemon

log = logging.getLogger(__name__)

BEAT = 15.0
"""Seconds between two heartbeats."""

SILENCE = 60.0
"""Seconds without a heartbeat after which its machine counts as lost."""

WATCHED = 35.0
"""Seconds for which a heartbeat that is older than that has to stay still while the store answers.

That is longer than the pause between two heartbeats of a machine that lives: BEAT and run_holder.TIMEOUT, or 30 s of a wandb
client. No machine takes a run over sooner: one that was silent for less still holds it.
"""

POLL = 1.0

LAST_REQUEST = 3.0
"""Seconds for the request that gives up the run, in a process that exits at once."""

LAST_WORDS = 5.0
"""Seconds for which the clients of a process that was killed may still send something."""


def _uptime() -> float:
    """Seconds that count while the machine is suspended, too, as Linux's monotonic clock doesn't."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Heartbeat:
    """That this process follows the run. `lost` is the error of one whose run another machine took over; None while it holds it.

    An unreachable store keeps nobody from training: it is asked once more at the next heartbeat. With `beside`, this process goes
    on beside whoever else follows the run, and neither loses it nor makes another one lose it. `clock` is in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        run: Run,
        output_dir: Path,
        *,
        beside: bool = False,
        clock: Callable[[], float] = _uptime,
    ) -> None:
        self.lost: LockedError | None = None
        self.undone = False
        """As in `Holder`: what the one before left, and what this process makes of it."""
        self.trained = False
        """As in `Holder`; never what the one before left."""
        self._notes = HolderNotes(connection, run)
        self._here = replace(run_holder.here(output_dir), beside=beside)
        self._leaving: Callable[[], bool] = lambda: False
        self._on_loss: Callable[[LockedError], None] = lambda _: None
        self._looked: Sign | None = None
        self._before: Sign | None = None
        self._held = False
        self._clock = clock
        self._renewed = -math.inf
        self._judging = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._warned = False

    @property
    def beating(self) -> bool:
        """Whether this process holds the run."""
        return self._thread is not None

    def guard(self, daemon: Daemon) -> None:
        """Let the daemon upload only while this process holds the run. Raises LockedError if that is lost already."""
        self._leaving = lambda: daemon.uploader.hurried
        self._on_loss = daemon.lose
        daemon.uploader.require_held = self.require_held
        daemon.give_up_run = self.give_up
        if self.lost:
            raise self.lost

    def require_alone(self, run: Run, stop: threading.Event | None = None, *, training: bool) -> None:
        """Return when no other machine or folder follows the run; `run` has its entity. Raises LockedError if one does.

        With `training`, this process will train, so no training on another machine may log to the run either. Waits for one that
        is leaving, and for a silent one until it counts as lost. A `stop` meanwhile ends the wait as a refusal.
        """
        self._notes.run = run
        for look in (self._other, self._other_training) if training else (self._other,):
            self._await_silence(look, stop or threading.Event())
        self._before = self._looked
        self.undone = bool(self._looked and self._looked.holder and self._looked.holder.undone)

    def _await_silence(self, look: Callable[[], Sign | None], stop: threading.Event) -> None:
        last = _seen(look)
        if last is None:
            return
        log.warning("run %s is %s: waiting until that ends or is silent for %.0f s", self._notes.run, last, SILENCE)
        begun = since = time.monotonic()
        while last and time.monotonic() - since < _required_silence(last) and not stop.wait(POLL):
            try:
                found = look()
            except StoreError as error:
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
        if last and stop.is_set():
            raise LockedError(f"stopped while run {self._notes.run} is {last}", hint="Start it again once that has ended.")

    def start(self, run: Run) -> None:
        """Hold the run from now on, whoever held it before. Does nothing where it does already."""
        if self._thread is None:
            self._notes.run = run
            with contextlib.suppress(StoreError):
                self._renew(self._own())
            self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
            self._thread.start()

    def begin(self) -> None:
        """Say that the training starts."""
        self.undone = True
        if self.beating:
            with contextlib.suppress(StoreError):
                self._renew(self._own())

    def require_held(self) -> None:
        """Return where this process may upload. After so long a silence that the run may have been taken, looks first.

        Raises LockedError where it was taken, TransientStoreError where the store can't be reached.
        """
        if self._held and self._silent():
            # A store that refuses the look refuses the upload too, which reports that as what it is.
            with contextlib.suppress(PermanentStoreError):
                self._judge(self._notes.read())
        if self.lost:
            raise self.lost

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Hold the run no longer when the block ends."""
        try:
            yield
        finally:
            self._end()

    def give_up(self) -> None:
        """Hold the run no longer, in a process that exits at once: the request for it gets LAST_REQUEST seconds."""
        ending = threading.Thread(target=self._end, name="end of heartbeat", daemon=True)
        ending.start()
        ending.join(LAST_REQUEST)

    def _end(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            with contextlib.suppress(StoreError):
                if not self.lost and not self._is_taken(self._notes.read()):
                    self._notes.end(self._own())

    def _other(self) -> Sign | None:
        """What is known of another holder of the run; None where there is none."""
        found = self._looked = self._notes.read()
        gone = found.holder is None or not self._is_taken(found) or found.holder.has_ended(self._here)
        return None if gone else found

    def _other_training(self) -> Sign | None:
        """The same of a training on another host that logs to the run. On this one, the locks of its folder tell.

        The ckptsync that started a training gives the run up only after that has ended, though its W&B run may still say
        `running`: a program that was killed after `train()` ends in that state.
        """
        found = self._notes.read_training()
        before = self._looked.holder if self._looked else None
        given_up = before is not None and before.ended and before.trained and before.process.get("host") == found.host
        return found if found.running and not given_up and found.host not in (None, self._here.process["host"]) else None

    def _is_taken(self, found: Sign) -> bool:
        """Whether another one holds the run that this process didn't find silent or gone before it began."""
        other = found.holder
        return other is not None and not other.ended and other.is_another(self._here) and not self._follows(other)

    def _follows(self, other: Holder) -> bool:
        """Whether this process took the run from that one, whose note stands until ours is written."""
        return self._before is not None and self._before.holder is not None and self._before.holder.is_same(other)

    def _keep_beating(self) -> None:
        tried = self._clock()
        # Short waits: a wait doesn't count while the machine is suspended, and what was lost meanwhile is to be known at once.
        while not self.lost and not self._over.wait(POLL):
            if self._clock() - tried >= BEAT:
                tried = self._clock()
                self._beat()

    def _beat(self) -> None:
        """Renew the heartbeat, and the note where nobody else's stands in its place."""
        try:
            if self._silent():
                # Before a heartbeat, which would show a run as running that the next machine may have finished.
                self._judge(self._notes.read())
            if not self.lost:
                self._judge(found := self._renew())
                own = self._own()
                if not (self.lost or self._is_taken(found) or found.holder == own):
                    self._renew(own)
        except StoreError as error:
            log.debug("%s", error)

    def _renew(self, note: Holder | None = None) -> Sign:
        sent = self._clock()
        found = self._notes.beat(note)
        self._renewed = sent
        self._held = self._held or note is not None
        return found

    def _own(self) -> Holder:
        return replace(self._here, leaving=self._leaving(), undone=self.undone, trained=self.trained)

    def _silent(self) -> bool:
        """Whether the last heartbeat is so old that another machine may have taken the run."""
        return self._clock() - self._renewed > WATCHED

    def _judge(self, found: Sign) -> None:
        """Note that another machine took the run over, or that it is followed beside this one; each is reported once."""
        with self._judging:
            if self.lost:
                return
            if not self._is_lost(found):
                if self._is_taken(found) and not self._warned:
                    self._warned = True
                    log.error("run %s is also followed by ckptsync on %s: their checkpoints mix", self._notes.run, found.holder)
                return
            who = f"ckptsync on {found.holder}" if found.holder else "another machine"
            self.lost = LockedError(
                f"run {self._notes.run} was taken over by {who}: nothing more is uploaded from here",
                hint=f"Its own checkpoints stay in {self._here.output_dir}; to go on with them all the same, add --force.",
            )
        self._on_loss(self.lost)

    def _is_lost(self, found: Sign) -> bool:
        """Whether the note that was found is the end of this process's hold on the run. Nobody loses it to a run that is gone."""
        other = found.holder
        if self._here.beside:
            return False
        if other is None:
            # What a person writes there while the heartbeat moves is overwritten.
            return self._held and self._silent() and found.beat is not None
        free = self._held or self._before is not None
        return free and other.is_another(self._here) and not other.beside and not self._follows(other)


def _seen(look: Callable[[], Sign | None]) -> Sign | None:
    """What a look finds; None where the store doesn't answer."""
    try:
        return look()
    except StoreError as error:
        log.debug("%s", error)
        return None


def _required_silence(sign: Sign) -> float:
    """Seconds for which a heartbeat must be seen not to move, by this machine's own monotonic clock."""
    return WATCHED if sign.age is not None and sign.age >= SILENCE else SILENCE
