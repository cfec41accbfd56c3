"""The watching process: one loop that looks, judges and pins, and the uploader's thread beside it.

Light on purpose: neither torch, transformers nor wandb is imported here. A crash and a clean start share this code: each begins
by looking at what is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ckptsync import durable, layouts, locks, record
from ckptsync.checkpoint import Checkpoint, Receipt, Run, Snapshot, Verdict, fingerprint, step_of
from ckptsync.errors import (
    CkptsyncError,
    ConfigurationError,
    PermanentStoreError,
    RestartedError,
    SnapshotChangedError,
    TransientStoreError,
)
from ckptsync.service import notify
from ckptsync.upload import lineage
from ckptsync.upload.quiet_period import QuietFolder, QuietPeriod
from ckptsync.upload.spool import Spool, newest
from ckptsync.upload.status_line import StatusLine
from ckptsync.upload.uploader import Policy, Uploader
from ckptsync.upload.watcher import Hints

log = logging.getLogger(__name__)

SOON = 0.25
"""Seconds to the next look while a checkpoint is on its way."""

SCAN_SHARE = 1000
"""A look that took t seconds is followed by a rest of at least SCAN_SHARE × t: 0.1 % of a core, however many folders."""

SCAN_LEAST = 2.0

ROOM_PATIENCE = 5.0
"""Seconds until a pin that the file system refused (full, read-only) is tried again."""

PIN_HINT = "Make room below .ckptsync and let it be written to; --spool-limit bounds what waits there."

STATUS_INTERVAL = 2.0
"""Seconds between two looks at how things stand, for the line that `systemctl status` shows."""

FLUSH_BEAT = 0.5

NAMES_PATIENCE = 30.0
"""Seconds that a whole checkpoint waits for files that the one before had. Then it counts: the program may have changed."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What to watch and how. `quiet` is in seconds; `environment` is for the upload processes; `stem` names the artifact."""

    output_dir: Path
    run: Run
    environment: Mapping[str, str]
    stem: str
    policy: Policy = Policy()  # noqa: RUF009 - frozen
    quiet: float = 3.0
    world_size: int | None = None
    allow_restart: bool = False


Reread = Callable[[Watch], Watch]
"""Gives the same watch with the settings that hold now. Raises CkptsyncError when they can't be read."""


class Stop:
    """One event for all that waits, and how it came to be set. The second signal means: now."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.wake = threading.Event()
        self.hung_up = threading.Event()
        self.on_second: Callable[[], None] = lambda: None
        self._signals: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def request(self) -> None:
        """End the watching: what is whole is pinned, the upload in hand is finished."""
        self.event.set()
        self.wake.set()

    @contextlib.contextmanager
    def on_signals(self, *numbers: signal.Signals) -> Iterator[None]:
        """While the block lasts, the first of these signals requests the end and the second one quits.

        SIGHUP asks for the settings to be read again; but on a terminal it says that this is gone.
        """
        watched = numbers if os.isatty(0) else (*numbers, signal.SIGHUP)
        thread = threading.Thread(target=self._deal, name="signals", daemon=True)
        thread.start()
        before = {number: signal.signal(number, self._note) for number in watched}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._signals.put(None)
            thread.join()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # It runs in the middle of anything: setting an event here would wait for ever if the loop just held the event's lock.
        self._signals.put(number)

    def _deal(self) -> None:
        while (number := self._signals.get()) is not None:
            if number == signal.SIGHUP:
                self.hung_up.set()
                self.wake.set()
            elif self.event.is_set():
                self.on_second()
                os._exit(128 + number)
            else:
                self.request()


class Daemon:
    """Follows one output folder while it holds that folder's lock."""

    def __init__(
        self, watch: Watch, stop: Stop, *, manager: notify.Manager = notify.NOBODY, reread: Reread | None = None
    ) -> None:
        self.watch = watch
        self.manager = manager
        self.spool = Spool(watch.output_dir)
        self.restarted: RestartedError | None = None
        self.stop = stop
        self._quiet_period = QuietPeriod(watch.output_dir, self.spool.complete_markers, quiet=watch.quiet)
        self._lock = locks.WatcherLock(self.spool.lock_path)
        self.uploader = Uploader(watch.run, self.spool, watch.environment, watch.policy, stop.event, stem=watch.stem)
        self._names: frozenset[str] = frozenset()
        self._seen: dict[str, str] = {}
        self._before: lineage.Progress | None = None
        self._refused: OSError | None = None
        self._reread = reread
        self.begun = True
        self._ready = False

    @contextlib.contextmanager
    def held(self) -> Iterator[Daemon]:
        """Hold the lock, with the folders made and swept. Raises LockedError, naming the holder."""
        with self._writing():
            durable.make_folder(self.spool.root)
            self._lock.acquire(f"ckptsync, pid {os.getpid()}, run {self.watch.run}")
        try:
            with self._writing():
                self._prepare()
            self.resumed()
            yield self
        finally:
            self.uploader.close()
            self._lock.release()

    def _prepare(self) -> None:
        for name in self.spool.prepare():
            log.info("swept what a crash left: %s", name)
        for name in self.spool.unpark():
            log.info("trying again what was parked: %s", name)
        run = self.watch.run
        # An entity that is still open says nothing against the one that the last start found out.
        entity = {"entity": run.entity} if run.entity else {}
        record.update(self.watch.output_dir, run_id=run.run_id, project=run.project, **entity)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Tell a folder that can't be written to from a failure of ours."""
        try:
            yield
        except OSError as error:
            raise ConfigurationError(f"{self.spool.root} cannot be written to: {error.strerror}", hint=PIN_HINT) from error

    def resumed(self) -> None:
        """Look anew from where the training has to go on: run.json says when it was resumed, and from which step."""
        # What waits counts too: what it superseded must not come after it, or `latest` would go backwards.
        known: list[Receipt | Snapshot] = [*self.spool.receipts(), *self.spool.pending()]
        self._before = lineage.progress(record.read(self.watch.output_dir), known)
        self.uploader.durable = newest(each for each in known if isinstance(each, Receipt))

    def check_store(self) -> None:
        """Find out now, not in an hour, whether the key is accepted. A store that is away is no reason not to start."""
        if self.watch.policy.mode != "online":
            return
        try:
            run = self.uploader.check()
        except TransientStoreError as error:
            log.warning("%s; watching all the same, uploads follow when it answers", error)
            return
        record.update(self.watch.output_dir, entity=run.entity)
        log.info("watching %s for run %s", self.watch.output_dir, run)

    def once(self) -> None:
        """Pin what is there, upload it, and return. Raises what kept something from becoming durable."""
        looked = False
        while not self.stop.event.is_set():
            self.look()
            looked = True
            if self._quiet_period.unsettled and not self._refused:
                self.stop.wake.wait(SOON)
            elif not self.uploader.drain() or self.uploader.changed.empty():
                break
        self.raise_outcome()
        for pinned, reason in self.spool.parked():
            raise PermanentStoreError(f"{pinned.checkpoint} is not durable, it is parked: {reason}")
        if self.stop.event.is_set() and (waiting := self.spool.waiting()):
            raise CkptsyncError(f"stopped with {len(waiting)} not durable: {', '.join(waiting)}", hint="Start it again to go on.")
        if self.stop.event.is_set() and (self._quiet_period.unsettled or not looked):
            raise CkptsyncError("stopped before all that is there was looked at", hint="Start it again to go on.")

    def follow(self, *, ended: Callable[[], bool] = lambda: False) -> None:
        """Watch until `stop` is requested or `ended` says so, then take what is whole, and let the uploader finish.

        After a stop, an upload that fails is not tried again: the snapshot waits in the spool for the next start. The service
        manager hears that the service is ready once all of this is in place, that it stops, and that the loop lives.
        """
        hints = Hints([self.watch.output_dir, self.spool.complete_markers], self.stop.wake)
        self.stop.on_second = self.uploader.kill
        uploads = threading.Thread(target=self.uploader.serve, name="uploader")
        hints.start()
        uploads.start()
        try:
            self.look()
            self._tell_manager()
            while not self.stop.event.is_set() and not ended():
                self._rest(self._pause())
                self._reread_if_asked()
                self.look()
                if not uploads.is_alive():
                    raise CkptsyncError("the uploads ended unexpectedly", hint="Start again: everything is still in the queue.")
            self.manager.stopping()
            self._settle()
        finally:
            hints.stop()
            self.uploader.finish()
            self._flush(uploads)

    def raise_outcome(self) -> None:
        """Raise what a user has to know at the end: a training that started over, or something that is not durable."""
        error = self.restarted or self.uploader.last_error
        if error:
            raise error
        if self._refused:
            raise CkptsyncError(f"not pinned: {self._refused}", hint=PIN_HINT)

    def look(self) -> None:
        """One look at the folder: whatever rests is judged, and pinned when it is whole."""
        whole: list[tuple[QuietFolder, Checkpoint]] = []
        while not self.uploader.changed.empty():
            self._quiet_period.forget(self.uploader.changed.get())
        resting = self._quiet_period.look()
        if self._quiet_period.fresh:
            self.uploader.expect()
        for rested in reversed(resting):
            if self._dealt_with(rested) or (whole and not self._wanted_beside(rested, whole[0][1])):
                self._quiet_period.accept(rested)
            elif checkpoint := self._judge(rested):
                whole.append((rested, checkpoint))
            self.manager.alive()
        for rested, checkpoint in reversed(whole):
            self._take(rested, checkpoint)

    def _dealt_with(self, rested: QuietFolder) -> bool:
        """Whether this very save is queued, parked or durable, or older than what is."""
        known = self.spool.knows(f"{rested.name}.{rested.fingerprint}")
        return known or lineage.left_behind(rested.step, rested.saved_at, self._before)

    def _wanted_beside(self, rested: QuietFolder, newest: Checkpoint) -> bool:
        """When several came at once: whether an older one is wanted too. The best is, since no later upload brings it."""
        state = newest.verdict.state
        best = state.best_checkpoint if state else None
        return self.watch.policy.keep_all or (best is not None and Path(best).name == rested.name)

    def _judge(self, rested: QuietFolder) -> Checkpoint | None:
        """The checkpoint, if it is whole; else None, with the reason told."""
        size = self.watch.world_size or record.read(self.watch.output_dir).world_size
        verdict = layouts.inspect(rested.path, world_size=size)
        if fingerprint(verdict.files) != rested.fingerprint:
            return None
        self._tell_seen(rested)
        if not verdict.complete:
            self._quiet_period.refuse(rested)
            self._tell_why_not(rested, verdict)
            return None
        missing = layouts.inspect(rested.path, world_size=size, expected_names=self._names)
        if not missing.complete:
            self._names = frozenset()
            self._quiet_period.postpone(rested, NAMES_PATIENCE)
            self._tell_why_not(rested, missing)
            return None
        return Checkpoint(rested.path, rested.step, verdict)

    def _take(self, rested: QuietFolder, checkpoint: Checkpoint) -> None:
        """Pin a whole checkpoint, unless it shows that the training started over. What can't be pinned yet is offered again."""
        if not self._asked_for(checkpoint):
            self._quiet_period.accept(rested)
            return
        over = lineage.started_over(checkpoint.step, checkpoint.saved_at, self._before)
        if not self.watch.allow_restart and (self.restarted or over):
            self._quiet_period.accept(rested)
            self._tell_restart(checkpoint)
            return
        try:
            pinned = self.spool.pin(checkpoint, alive=self.manager.alive)
            self.uploader.trim()
        except SnapshotChangedError as error:
            log.info("%s; it is looked at again", error)
            return
        except OSError as error:
            self._quiet_period.postpone(rested, ROOM_PATIENCE)
            self._tell_refused(checkpoint, error)
            return
        self._quiet_period.accept(rested)
        if self._refused:
            log.warning("pinning works again")
            self._refused = None
        self._names = frozenset(file.path for file in checkpoint.files)
        self._before = lineage.Progress(checkpoint.step, checkpoint.saved_at, resumed=False)
        for note in checkpoint.verdict.notes:
            log.warning("%s: %s", checkpoint.name, note)
        if pinned.pinned_by == "copy":
            log.warning("%s was copied: this file system allows neither reflinks nor hard links here", checkpoint.name)
        log.info("pinned %s: %d files, %d bytes, by %s", pinned.name, len(pinned.files), pinned.bytes, pinned.pinned_by)
        self.uploader.wake()

    def _asked_for(self, checkpoint: Checkpoint) -> bool:
        """Whether it is to be uploaded at all, now or later."""
        policy, state = self.watch.policy, checkpoint.verdict.state
        return policy.mode != "disabled" and (not policy.only_model or (state is not None and state.finished))

    def _tell_seen(self, rested: QuietFolder) -> None:
        """Once for each save that is new."""
        if self._seen.get(rested.name) != rested.fingerprint:
            self._seen[rested.name] = rested.fingerprint
            self.spool.record("seen", checkpoint=rested.name, print=rested.fingerprint, step=rested.step)

    def _tell_why_not(self, rested: QuietFolder, verdict: Verdict) -> None:
        reasons = "; ".join(str(problem) for problem in verdict.problems[:3])
        self.spool.record("incomplete", checkpoint=rested.name, step=rested.step, reason=reasons)
        log.warning("not uploaded, not whole: %s: %s", rested.name, reasons)

    def _tell_refused(self, checkpoint: Checkpoint, error: OSError) -> None:
        """Once, and again only for another reason: it is tried every few seconds."""
        if self._refused is None or self._refused.errno != error.errno:
            log.error("not pinned, tried again every %.0f s: %s: %s. %s", ROOM_PATIENCE, checkpoint.name, error, PIN_HINT)
        self._refused = error

    def _tell_restart(self, checkpoint: Checkpoint) -> None:
        if self.restarted is None and self._before is not None:
            before = self._before.step
            self.restarted = RestartedError(
                f"{checkpoint.name} is not above step {before}, so the training started over; nothing of it is uploaded"
            )
            record.update(self.watch.output_dir, restarted_at=checkpoint.saved_at)
            self.spool.record("restarted", checkpoint=checkpoint.name, step=checkpoint.step, before=before)
            log.error("%s. %s", self.restarted, self.restarted.hint)

    def _settle(self) -> None:
        """At the end: give what is still on its way the quiet period to come to rest, and no more."""
        deadline = time.monotonic() + self.watch.quiet + 2 * SOON
        self.look()
        while self._quiet_period.unsettled and time.monotonic() < deadline:
            self._rest(SOON)
            self.look()

    def _flush(self, uploads: threading.Thread) -> None:
        """Wait for the uploads to end. The manager gives them more time for as long as bytes move, and no longer."""
        while uploads.is_alive():
            self._tell_manager()
            if self.uploader.progress:
                self.manager.moving(self.uploader.progress.moved)
            uploads.join(FLUSH_BEAT)

    def _rest(self, seconds: float) -> None:
        """Wait for a hint, but not longer than that, while the manager hears that the loop lives and how things stand."""
        deadline = time.monotonic() + seconds
        slice_ = min(self.manager.beat or STATUS_INTERVAL, STATUS_INTERVAL)
        while (left := deadline - time.monotonic()) > 0 and not self.stop.wake.wait(min(left, slice_)):
            self._tell_manager()
        self._tell_manager()
        self.stop.wake.clear()

    def _tell_manager(self) -> None:
        """Say that the loop lives and how things stand. The first time, once all has begun, that makes the service ready."""
        if self.begun and not self._ready:
            self._ready = True
            self.manager.ready(str(self._standing()))
        self.manager.alive()
        self.manager.status(str(self._standing()))

    def _standing(self) -> StatusLine:
        names = self.spool.waiting()
        durable_, progress = self.uploader.durable, self.uploader.progress
        return StatusLine(
            durable=durable_.step if durable_ else None,
            newest=max((step for name in names if (step := step_of(name.partition(".")[0])) is not None), default=None),
            waiting=len(names),
            uploading=progress.snapshot.checkpoint if progress else None,
            percent=100 * progress.done // progress.total if progress and progress.total else None,
            rate=self.uploader.rate,
        )

    def _reread_if_asked(self) -> None:
        """After SIGHUP: take the settings that can change under way. Those that are wrong change nothing."""
        if not self.stop.hung_up.is_set() or not self._reread:
            return
        self.stop.hung_up.clear()
        self.manager.reloading()
        try:
            self.watch = self._reread(self.watch)
        except CkptsyncError as error:
            log.error("settings not changed: %s. %s", error, error.hint)
        else:
            self._quiet_period.quiet, self.uploader.policy = self.watch.quiet, self.watch.policy
            log.info("settings read again: quiet period %.1f s, %s", self.watch.quiet, self.watch.policy)
        self.manager.ready(str(self._standing()))

    def _pause(self) -> float:
        if self._quiet_period.unsettled:
            return SOON
        return max(SCAN_LEAST, SCAN_SHARE * self._quiet_period.cost)


def process_ended(pid: int) -> Callable[[], bool]:
    """A question to ask again and again: is that process gone? A reused number doesn't count as the same process."""
    born = _birth(pid)

    def ended() -> bool:
        return born is None or _birth(pid) != born

    return ended


def _birth(pid: int) -> str | None:
    """When the kernel started the process (/proc/PID/stat, field 22), or only that it is there; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
        return "alive" if _answers(pid) else None
    return None if fields[0] == "Z" else fields[19]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
