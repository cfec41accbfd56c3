"""The watching process: one loop that scans and pins, and the uploader's thread beside it.

Light on purpose: neither torch, transformers nor wandb is imported here. A crash and a clean start share this code: both begin
by scanning what is there.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptsync import record
from ckptsync.checkpoint import Receipt, Run, Snapshot, step_of
from ckptsync.errors import (
    CkptsyncError,
    LockedError,
    NotFoundError,
    PermanentStoreError,
    RestartedError,
    TransientStoreError,
)
from ckptsync.service import notify
from ckptsync.upload import lineage
from ckptsync.upload.deadline import NOTICE_FLUSH
from ckptsync.upload.held_folder import HeldFolder, Presence, checkpoint_of
from ckptsync.upload.pinner import PIN_HINT, Expectation, Pinner
from ckptsync.upload.quiet_period import QuietPeriod
from ckptsync.upload.service_report import ServiceReport
from ckptsync.upload.settings import UploadSettings
from ckptsync.upload.spool import Spool
from ckptsync.upload.stop import Stop
from ckptsync.upload.uploader import Uploader
from ckptsync.upload.watcher import Hints

log = logging.getLogger(__name__)

SOON = 0.25
"""Seconds to the next scan while a checkpoint is being written."""

WRITING_SHARE = 20
"""The same for the scans while a checkpoint is being written: 5 % of a core at most, however many files it has."""

WRITING_PATIENCE = 10
"""Quiet periods that `watch --once` gives a save to finish, once everything else is uploaded."""

SCAN_SHARE = 1000
"""A scan that took t seconds is followed by a pause of at least SCAN_SHARE × t: 0.1 % of a core, however many folders."""

SCAN_LEAST = 2.0

STATUS_INTERVAL = 2.0
"""Seconds between two updates of the line that `systemctl status` shows."""

FLUSH_BEAT = 0.5

LISTEN_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Watch:
    """What to watch and how. `quiet` is in seconds; `environment` is for the upload processes; `stem` names the artifact.

    `store` identifies the store, as in `Connection`; None where nothing is uploaded.
    """

    output_dir: Path
    run: Run
    environment: Mapping[str, str]
    stem: str
    store: str | None = None
    settings: UploadSettings = UploadSettings()  # noqa: RUF009 - frozen
    quiet: float = 3.0
    world_size: int | None = None
    allow_restart: bool = False


Reread = Callable[[Watch], Watch]
"""Returns the same watch with the settings that now apply. Raises CkptsyncError when they can't be read."""


class Daemon:
    """Follows one output folder while it holds that folder's lock."""

    def __init__(
        self, watch: Watch, stop: Stop, *, manager: notify.Manager = notify.NOBODY, reread: Reread | None = None
    ) -> None:
        self.watch = watch
        self.manager = manager
        self.spool = Spool(watch.output_dir, run_id=watch.run.run_id, store=watch.store)
        self.stop = stop
        self._quiet_period = QuietPeriod(watch.output_dir, self.spool.markers.folder, quiet=watch.quiet)
        self.pinner = Pinner(
            self.spool, self._quiet_period, watch.settings, Expectation(watch.world_size, allow_restart=watch.allow_restart)
        )
        self._folder = HeldFolder(self.spool, watch.run)
        self.uploader = Uploader(
            watch.run, self.spool, watch.environment, watch.settings, stop.event, stem=watch.stem, back=watch.allow_restart
        )
        self.report = ServiceReport(manager, self.spool, self.uploader.uploads)
        self._reread = reread
        self.completed = False
        """Whether the training came to its last step and exited with 0, wherever that can be noted."""
        self.give_up_run: Callable[[], None] = lambda: None
        """Lets the next machine follow the run at once; to be called before this process exits in the middle of something."""
        self._failing: OSError | None = None
        self._hints: Hints | None = None
        self._known = record.Record({})

    @contextlib.contextmanager
    def held(self) -> Iterator[Daemon]:
        """Hold the lock, with the folders made and swept. Raises LockedError, naming the holder."""
        with self._folder.writing(PIN_HINT):
            self._folder.acquire()
        if not self._folder.locks_work:
            log.warning("no file locks (flock) in %s: using a lock file, which a lost machine leaves behind", self.spool.root)
        try:
            with self._folder.writing(PIN_HINT):
                self._prepare()
            self.resumed()
            yield self
        finally:
            self.uploader.close()
            self._folder.release()

    def _prepare(self) -> None:
        for name in self.spool.prepare():
            log.info("removed what a crash left behind: %s", name)
        if self.spool.foreign:
            log.warning("leaving %s in the queue: another run's", ", ".join(sorted(self.spool.foreign)))
        for name in self.spool.unpark():
            log.info("retrying what was parked: %s", name)
        run = self.watch.run
        # An unknown entity must not erase the one that an earlier start found out.
        entity = {"entity": run.entity} if run.entity else {}
        record.change(
            self.watch.output_dir,
            lambda known: {"started_in": run.project, **known, "run_id": run.run_id, "project": run.project, **entity},
        )

    def resumed(self) -> None:
        """Continue from where the training has to go on. To be called at every start of the training."""
        self._known = record.read(self.watch.output_dir)
        known: list[Receipt | Snapshot] = [*self.spool.receipts, *self.spool.pending()]
        self.pinner.continue_from(known)
        self.uploader.uploads.finished = False
        self.uploader.uploads.durable = lineage.newest(each for each in known if isinstance(each, Receipt))

    @property
    def run(self) -> Run:
        """The run, with its entity once the store has named it."""
        return self.uploader.uploads.run

    def check_store(self) -> None:
        """Find out now, not in an hour, whether the key is accepted. An unreachable store is no reason not to start."""
        if self.watch.settings.mode != "online":
            return
        try:
            run = self.uploader.check()
        except TransientStoreError as error:
            log.warning("%s; watching anyway, uploads start when it answers", error)
            return
        # The training may be replacing its output folder at this moment.
        with contextlib.suppress(FileNotFoundError):
            record.update(self.watch.output_dir, entity=run.entity)
        log.info("watching %s for run %s", self.watch.output_dir, run)
        newest = self.spool.receipts.newest()
        for project in newest.artifact.split("/")[1:2] if newest else ():
            if project != run.project:
                log.warning("what is durable so far is in project %s, and is not uploaded to %s again", project, run.project)

    def once(self) -> None:
        """Pin what is there, upload it, and return. Raises what kept something from becoming durable.

        What goes on changing holds up neither the uploads of the rest nor, in the end, the exit.
        """
        scanned = self._scan_until_decided(self.watch.quiet)
        while (uploaded := self.uploader.drain()) and not self.uploader.changed.empty():
            self._scan_until_decided(self.watch.quiet)
        if uploaded and self.pinner.undecided:
            self._scan_until_decided(WRITING_PATIENCE * self.watch.quiet)
            self.uploader.drain()
        self.raise_outcome()
        self.raise_gone()
        if self.stop.event.is_set():
            self._raise_unfinished(scanned=scanned)
        self.raise_unsettled()
        if self.watch.settings.mode == "online" and self.uploader.uploads.durable is None:
            raise NotFoundError(
                f"{self.watch.output_dir} has no checkpoint to upload",
                hint="The Trainer saves checkpoint-N folders below its output_dir, every --save_steps.",
            )

    def _scan_until_decided(self, seconds: float) -> bool:
        """Scan until a decision on every folder is made. One that is still being written after that time is left undecided."""
        scanned, begun = False, 0.0
        while not self.stop.event.is_set():
            # Before the scan: however long one takes, another comes after that time.
            late = scanned and time.monotonic() > begun + seconds + SOON
            self.scan()
            if not scanned:
                scanned, begun = True, time.monotonic()
            if not self.pinner.undecided or self.pinner.blocked or (late and self.pinner.being_written):
                break
            self.stop.wake.wait(SOON)
        return scanned

    def _raise_unfinished(self, *, scanned: bool) -> None:
        """Raise what a stop left undone."""
        self.raise_queued()
        if self.pinner.undecided or not scanned:
            raise CkptsyncError("stopped before all checkpoints were examined", hint="Start it again to go on.")

    def follow(self, *, ended: Callable[[], bool] = lambda: False) -> None:
        """Watch until `stop` is requested or `ended` says so, then pin what is complete, and let the uploader finish.

        After a stop, an upload that fails is not retried: the snapshot stays in the spool for the next start. The service
        manager hears that the service is ready once all of this is set up, that it stops, and that the loop is alive.
        """
        self.uploader.reopen()
        self.pinner.last_chance = False
        self.stop.on_second = self.uploader.kill
        uploads = threading.Thread(target=self.uploader.serve, name="uploader")
        self._listen()
        uploads.start()
        try:
            self._try_to_scan()
            while not self.stop.event.is_set() and not ended():
                self._rest(self._pause())
                self._reread_if_asked()
                self._try_to_scan()
                if not uploads.is_alive():
                    raise CkptsyncError("the uploads ended unexpectedly", hint="Start again: everything is still in the queue.")
            self.manager.stopping()
            self._scan_last()
        finally:
            self._stop_listening()
            self.uploader.finish()
            self._flush(uploads)

    @property
    def restarted(self) -> RestartedError | None:
        """The error of a training that restarted from scratch; None for one that goes on."""
        return self.pinner.restart_detection.restarted

    def take_up_verdict(self) -> None:
        """Take up whether another watcher, which holds the folder, found that the training restarted from scratch."""
        self.pinner.restart_detection.take_up_verdict()

    def forgive_restart(self) -> None:
        """Drop that verdict: what restarted did so after the training had left as asked."""
        self.pinner.restart_detection.restarted = None

    def lose(self, error: LockedError) -> None:
        """Upload nothing more: another machine took the run over. To be called in any thread."""
        self.uploader.lose(error)
        self.stop.wake.set()

    @property
    def lost(self) -> LockedError | None:
        """The error of a run that another machine took over; None for one that is ours."""
        return self.uploader.lost

    def raise_outcome(self) -> None:
        """Raise what a user has to know at the end.

        Another machine took the run over, the training restarted from scratch, or something is not durable.
        """
        if self.lost:
            raise self.lost
        if self.restarted:
            raise self.restarted
        self._folder.require_queue()
        if self.uploader.last_error:
            raise self.uploader.last_error
        if self._failing:
            raise CkptsyncError(f"{self.watch.output_dir} could not be scanned: {self._failing}", hint="Start it again to go on.")
        for pinned, reason in self.spool.parked():
            raise PermanentStoreError(f"{pinned.checkpoint} is not durable, it is parked: {reason}")
        self.pinner.raise_refusal()

    def raise_queued(self) -> None:
        """Raise what a stop left in the queue: with `keep_all` only the current upload is finished."""
        if self.watch.settings.mode == "online" and (waiting := self.spool.waiting()):
            names = ", ".join(sorted(map(checkpoint_of, waiting), key=lambda name: step_of(name) or 0))
            raise CkptsyncError(f"stopped with {len(waiting)} not durable: {names}", hint="Start it again to go on.")

    def raise_gone(self, *, ended: bool = False) -> None:
        """Raise where the output folder is gone, or another one without checkpoints is there: nobody knows what was saved in it.

        With `ended`, the training exited with 0: if its last step is durable, it may have deleted its folder itself.
        """
        if self.watch.settings.mode == "online" and not (ended and self.uploader.uploads.finished):
            self._folder.require_here()

    def raise_unsettled(self) -> None:
        """Raise why the last save of a training that has ended isn't durable: it is incomplete, or was still being written."""
        if self._folder.presence is Presence.HERE:
            self.pinner.raise_unsettled()

    def scan(self) -> None:
        """Scan the folder once: whatever has been quiet is validated, and pinned when it is complete."""
        if not self._follow_folder():
            return
        if self.pinner.restart_detection.attempt_changed:
            self.resumed()
        if self.spool.take_retry_request():
            self.uploader.retry_parked()
            self.uploader.wake()
        while not self.uploader.changed.empty():
            self._quiet_period.forget(self.uploader.changed.get())
        folders = self._quiet_period.scan()
        if self._quiet_period.fresh:
            self.uploader.expect()
        if self.pinner.pin_quiet(folders, alive=self.manager.alive):
            self.uploader.trim()
            self.uploader.wake()

    def _listen(self) -> None:
        for _ in range(LISTEN_ATTEMPTS):
            self._hints = Hints([self.watch.output_dir, self.spool.markers.folder], self.stop.wake)
            # The state may move, beside the output folder or back into it, at this very moment.
            with contextlib.suppress(FileNotFoundError):
                self._hints.start()
                return
        log.warning("no file events in %s: relying on scans alone", self.watch.output_dir)

    def _stop_listening(self) -> None:
        if self._hints:
            self._hints.stop()
            self._hints = None

    def _follow_folder(self) -> bool:
        """Follow the output folder, and the state in it or beside it, to where they are now. Whether there is anything to scan.

        A program may delete it and make it again, a link be moved, a disk unmounted. Another folder in its place is followed once
        it holds a checkpoint: some programs insist on an empty one. Raises LockedError if another watcher has that.
        """
        presence = self._folder.presence
        if presence is Presence.REPLACED and self._quiet_period.names():
            self._take_up_folder()
        elif presence is not Presence.HERE:
            self._folder.note_away(presence)
            return False
        elif self._folder.note_back():
            self._listen_again()
        self.spool.move_in()
        self._quiet_period.markers = self.spool.markers.folder
        self.uploader.child.private = self.spool.root / "wandb"
        return True

    def _take_up_folder(self) -> None:
        self._folder.note_replaced()
        self._folder.release()
        self._folder.acquire()
        known = self._known.values
        record.change(self.watch.output_dir, lambda there: {**known, **there})
        self._prepare()
        self.resumed()
        # What failed was in the queue of the folder that is gone.
        self.uploader.last_error = None
        self._listen_again()

    def _listen_again(self) -> None:
        if self._hints is not None:
            self._stop_listening()
            self._listen()

    @property
    def failing(self) -> bool:
        """Whether the last scan failed."""
        return self._failing is not None

    def _try_to_scan(self) -> None:
        """Scan. A file system that fails for a while (EIO, EACCES, a remount) is scanned again: an error only at the end."""
        try:
            self.scan()
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self._folder.presence is not Presence.HERE:
                # It went during the scan. The next one tells.
                return
            if self._failing is None or self._failing.errno != error.errno:
                log.error("cannot scan %s, retrying: %s", self.watch.output_dir, error)
            self._failing = error
        else:
            if self._failing:
                log.warning("%s can be scanned again", self.watch.output_dir)
            self._failing = None

    def _scan_last(self) -> None:
        """At the end: give what is still being written one quiet period to finish, and no more."""
        deadline = time.monotonic() + self.watch.quiet + 2 * SOON
        self.pinner.settle()
        self._try_to_scan()
        while (self.pinner.undecided or self._failing) and time.monotonic() < deadline:
            self._rest(SOON)
            self._try_to_scan()

    def _flush(self, uploads: threading.Thread) -> None:
        """Wait for the uploads to end. The service manager is asked for more time as long as bytes move, and no longer.

        Where nothing moves for too long, the store is no longer retried: everything is queued for the next start.
        """
        seen, since = None, time.monotonic()
        while uploads.is_alive():
            progress = self.uploader.uploads.progress
            now = (self.uploader.uploads.durable, progress.moved if progress else None)
            if now != seen:
                seen, since = now, time.monotonic()
            limit = self._flush_limit()
            if limit is not None and time.monotonic() - since > limit:
                self.stop.request()
            self.report.send()
            if self.uploader.uploads.progress:
                self.manager.moving(self.uploader.uploads.progress.moved)
            uploads.join(FLUSH_BEAT)

    def _flush_limit(self) -> float | None:
        """Seconds that the end waits without progress; None for as long as it takes."""
        asked = self.watch.settings.flush_for
        return NOTICE_FLUSH if asked is None and self.uploader.hurried else asked

    def _rest(self, seconds: float) -> None:
        """Wait for a hint, but no longer than that, and keep the service manager informed meanwhile."""
        deadline = time.monotonic() + seconds
        slice_ = min(self.manager.beat or STATUS_INTERVAL, STATUS_INTERVAL)
        while (left := deadline - time.monotonic()) > 0 and not self.stop.wake.wait(min(left, slice_)):
            self.report.send()
        self.report.send()
        self.stop.wake.clear()

    def _reread_if_asked(self) -> None:
        """After SIGHUP: take the settings that can change while running. Invalid ones change nothing."""
        if not self.stop.hung_up.is_set() or not self._reread:
            return
        self.stop.hung_up.clear()
        self.manager.reloading()
        try:
            self.watch = self._reread(self.watch)
        except CkptsyncError as error:
            log.error("settings not changed: %s. %s", error, error.hint)
        else:
            self._quiet_period.quiet = self.watch.quiet
            self.uploader.settings = self.pinner.settings = self.watch.settings
            log.info("settings read again: quiet period %.1f s, %s", self.watch.quiet, self.watch.settings)
        self.report.reloaded()

    def _pause(self) -> float:
        if self.pinner.undecided:
            return max(SOON, WRITING_SHARE * self._quiet_period.cost)
        return max(SCAN_LEAST, SCAN_SHARE * self._quiet_period.cost)
