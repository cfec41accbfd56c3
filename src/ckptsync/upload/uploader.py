"""Empties the spool: one snapshot after the other through the upload process, retried where that can help.

Runs in a thread of its own beside the watching loop and reaches the store through the upload process only.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from ckptsync.checkpoint import Run, Snapshot
from ckptsync.errors import CkptsyncError, LockedError, SnapshotChangedError, TransientStoreError
from ckptsync.store.retrying import retry
from ckptsync.upload.child import PUBLISH
from ckptsync.upload.child_lifecycle import ChildLifecycle
from ckptsync.upload.deadline import Deadline
from ckptsync.upload.settings import UploadSettings
from ckptsync.upload.spool import Spool
from ckptsync.upload.upload_queue import UploadQueue
from ckptsync.upload.version_upload import VersionUpload

log = logging.getLogger(__name__)


STOP_STALL = 30.0
"""Seconds that an upload which doesn't move is allowed after a stop. Its snapshot stays for the next start."""

PARKED_RETRY_SECONDS = 900.0
"""Seconds between two retries of what is parked."""


class Uploader:
    """Takes snapshots out of the spool until it is asked to stop.

    `stop` ends every wait between two attempts; the current attempt goes on to its end.
    """

    def __init__(
        self,
        run: Run,
        store: Spool,
        environment: Mapping[str, str],
        settings: UploadSettings,
        stop: threading.Event,
        *,
        stem: str,
        back: bool = False,
        command: Sequence[str] = PUBLISH,
    ) -> None:
        self.last_error: CkptsyncError | None = None
        self.lost: LockedError | None = None
        """Why nothing more is uploaded: another machine took the run over."""
        self.require_held: Callable[[], None] = lambda: None
        """Called before each upload; raises LockedError where another machine took the run over."""
        self.changed: queue.SimpleQueue[str] = queue.SimpleQueue()
        """Names of checkpoints whose pins changed: whoever watches has to scan them again."""
        self._wake = threading.Event()
        self._finishing = False
        self._expecting = False
        self._spool = store
        self._stop = stop
        self._deadline: Deadline | None = None
        self._queue = UploadQueue(store)
        # What was uploaded last, and how far the current upload is, stand in `uploads`.
        self.child = ChildLifecycle(run, environment, store.root / "wandb", settings, command=command)
        self.child.stall = self._stall
        self.uploads = VersionUpload(run, store, self.child, stem=stem, back=back)

    @property
    def settings(self) -> UploadSettings:
        """How uploads go; a new one holds from the next job on."""
        return self.child.settings

    @settings.setter
    def settings(self, settings: UploadSettings) -> None:
        self.child.settings = settings

    def check(self) -> Run:
        """The run with its entity, once the store accepted the key. One attempt."""
        run = Run(**self.child.ask({"op": "check", "run": asdict(self.uploads.run)})["run"])
        self.uploads.run = self.child.run = run
        return run

    def serve(self) -> None:
        """Upload whatever is pinned until `finish` is called and nothing is queued; the body of the uploader's thread.

        After a stop the newest is uploaded once more, or with `keep_all` none. What is parked is retried now and then.
        """
        next_retry = time.monotonic() + PARKED_RETRY_SECONDS
        while not self._finishing:
            if self._expecting:
                self._expecting = False
                with contextlib.suppress(CkptsyncError, OSError):
                    self.child.start()
            if time.monotonic() >= next_retry:
                next_retry = time.monotonic() + PARKED_RETRY_SECONDS
                self.retry_parked()
            self.drain()
            if not self._woken(self.settings.linger):
                self.close()
                self._woken(max(0.0, next_retry - time.monotonic()))
        self.drain()
        self.close()

    def retry_parked(self) -> None:
        """Queue again what a permanent error stopped: a person may have removed the cause."""
        with contextlib.suppress(OSError):
            for name in self._spool.unpark():
                log.info("retrying what was parked: %s", name)

    def expect(self) -> None:
        """Announce that something will soon be pinned: a process that is ready by then saves the upload a second."""
        if not self.child.running and self.settings.mode == "online":
            self._expecting = True
            self._wake.set()

    def wake(self) -> None:
        """Announce that something was pinned."""
        self._wake.set()

    def reopen(self) -> None:
        """Announce that pins may follow: undoes `finish`, for a watcher that is started again."""
        self._finishing = False

    def finish(self) -> None:
        """Announce that nothing will be pinned any more."""
        self._finishing = True
        self._wake.set()

    def trim(self) -> None:
        """Keep the queue within the limit of the settings. To be called whenever something was pinned."""
        self._queue.trim(limit=self.settings.limit, keep_all=self.settings.keep_all)

    def hurry(self, seconds: float | None) -> None:
        """The machine goes in so many seconds, None if unknown: from now on the newest is uploaded first."""
        self._deadline = Deadline.after(seconds, self._spool.waiting())
        self.child.urgent = True

    @property
    def hurried(self) -> bool:
        """Whether a notice came: the machine goes, with or without a known deadline."""
        return self._deadline is not None

    def give_way(self) -> bool:
        """After a notice: end the current upload where the newest checkpoint fits before the deadline, but not behind it.

        Without a measured rate the current upload continues: something durable is better than nothing.
        """
        current, known = self._queue.current, self.uploads.durable
        # What was measured with a limit says nothing of the line without it.
        if current is None or self._deadline is None or known is None or known.seconds <= 0 or self.settings.max_rate:
            return False
        newest = max(self._spool.pending(), key=lambda each: each.sequence, default=current)
        rate, now = known.bytes / known.seconds, time.monotonic()
        elapsed = now - self.uploads.begun
        if newest.name == current.name or not self._deadline.calls_off(
            current=current.bytes / rate, elapsed=elapsed, newest=newest.bytes / rate, now=now
        ):
            return False
        log.warning("stopped the upload of %s, so that %s meets the deadline", current.checkpoint, newest.checkpoint)
        self.kill()
        return True

    def pace(self) -> tuple[int, float] | None:
        """Bytes and seconds of the last upload, or of the first one once a quarter of it is done; None where nobody knows.

        Not under a rate limit, which is lifted at the notice: what the line can do then is not known.
        """
        known, progress, rate = self.uploads.durable, self.uploads.progress, self.uploads.rate
        if self.settings.max_rate:
            return None
        if known is not None and known.seconds > 0:
            return known.bytes, known.seconds
        if progress and rate and progress.done * 4 > progress.total:
            return progress.total, progress.total / rate
        return None

    def drain(self) -> bool:
        """Upload until the queue is empty, or a stop ends it. False when the store stayed unreachable for too long.

        So it is once another machine took the run over.
        """
        if self.settings.mode != "online":
            # A file system that fails for a while must not end the thread.
            with contextlib.suppress(OSError):
                self._take()
            self._queue.release()
            return True
        try:
            while not self._over() and retry(
                self.upload_next,
                what="upload",
                patience=self.settings.patience,
                stop=self._stop,
                hurried=lambda: self._deadline is not None,
            ):
                pass
        except (TransientStoreError, LockedError) as error:
            self.last_error = error
            return False
        return True

    def upload_next(self) -> bool:
        """Make the next snapshot durable, or move it out of the way for good; False when none is queued.

        Every attempt chooses anew: what was pinned while the store was unreachable may supersede what was tried before. Raises
        TransientStoreError or LockedError, with everything still in the queue.
        """
        try:
            pinned = self._take()
            if pinned is None:
                return False
            try:
                self._require_held()
                self._deal_with(pinned)
            except TransientStoreError:
                self._queue.note_failure(pinned)
                raise
            finally:
                self._queue.release()
        except OSError as error:
            # A full disk takes no receipt. It must not end the thread: there may be space again.
            raise TransientStoreError(f"the queue cannot be written to: {error}") from error
        return True

    def lose(self, error: LockedError) -> None:
        """Upload nothing more, and end the current upload. To be called in any thread."""
        self.lost = error
        self.kill()

    def close(self) -> None:
        """End the upload process, gently."""
        self.child.close()

    def kill(self) -> None:
        """End the upload process at once: the current upload is lost, its snapshot is not."""
        self.child.kill()

    def _take(self) -> Snapshot | None:
        return self._queue.take(limit=self.settings.limit, keep_all=self.settings.keep_all, urgent=self._deadline is not None)

    def _require_held(self) -> None:
        self.require_held()
        if self.lost:
            raise self.lost

    def _stall(self) -> float:
        """Seconds without progress that end an upload once a stop or a notice leaves it little time; the settings allow more.

        A client that a server has told to wait (429, Retry-After) keeps silent for as long (wandb 0.31).
        """
        if self._deadline is not None:
            return self._deadline.stall(time.monotonic())
        return STOP_STALL if self._stop.is_set() else math.inf

    def _over(self) -> bool:
        """Whether a stop leaves the rest for the next start. Without `keep_all` the newest is still uploaded."""
        return self._stop.is_set() and self.settings.keep_all and self._deadline is None

    def _deal_with(self, pinned: Snapshot) -> None:
        """Publish one snapshot, or drop it where it changed, or park it where only a person can help."""
        try:
            self.uploads.publish(pinned, self.settings, self._deadline)
            self.last_error = None
        except TransientStoreError:
            raise
        except SnapshotChangedError as error:
            log.warning("%s; it is pinned again", error)
            self._spool.discard(pinned)
            self.changed.put(pinned.checkpoint)
        except CkptsyncError as error:
            self.last_error = error
            self._spool.park(pinned, error)
            log.error("parked %s: %s. %s", pinned.checkpoint, error, error.hint)

    def _woken(self, seconds: float | None) -> bool:
        woken = self._wake.wait(seconds)
        # Not after a time-out: a wake-up, or the request to finish, that came just then would be lost.
        if woken:
            self._wake.clear()
        return woken
