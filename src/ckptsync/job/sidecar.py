"""Beside a training that something else started: at a notice, asks its ranks to save, and uploads that save first."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator, Sequence

from ckptsync.job import grace_period
from ckptsync.job.preemption.listener import NoticeListener
from ckptsync.job.preemption.notice import Notice, Source
from ckptsync.job.training import FoundTraining
from ckptsync.upload.daemon import Daemon

log = logging.getLogger(__name__)


class Sidecar:
    """Handles preemption notices for a watcher whose training was started elsewhere. Signals only ranks with a SyncCallback."""

    def __init__(self, daemon: Daemon, sources: Sequence[Source], grace: float | None) -> None:
        self.notice: Notice | None = None
        self._daemon = daemon
        self._grace = grace
        self._grace_check = grace_period.GraceCheck()
        self._training = FoundTraining(daemon.spool.output_dir)
        self._asked = False
        self._listener = NoticeListener(sources, self._handle)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Sidecar]:
        """Listen for notices while the block runs."""
        self._listener.start()
        try:
            yield self
        finally:
            self._listener.stop()

    def ended(self) -> bool:
        """Whether the training was asked to save and has exited. A training that can't be asked is watched to its own end."""
        grace = self._grace or grace_period.usual(self._listener.found)
        self._grace_check.warn(self._daemon.uploader.pace(), grace)
        return self._asked and self._training.ended()

    def preempted(self) -> bool:
        """Whether a notice came and everything that was saved is durable."""
        return self.notice is not None and not self._daemon.spool.pending()

    def signaled(self, number: int) -> None:
        """Handle a signal that announces the preemption, as SLURM sends one to every step (`--signal=USR1@120`)."""
        self._handle(Notice(signal.Signals(number).name, self._grace))

    def _handle(self, notice: Notice) -> None:
        self._daemon.spool.history.record("notice" if notice.final else "hint", source=notice.source, seconds=notice.seconds)
        if notice.final:
            self._preempt(notice)
        else:
            log.warning("%s recommends leaving this machine: it may be preempted at any time", notice.source)

    def _preempt(self, notice: Notice) -> None:
        self.notice = notice
        self._asked = not self._training.ended()
        consequence = "asking the training to save" if self._asked else "no rank on this machine has a SyncCallback to save with"
        log.warning("preemption notice from %s: %s", notice, consequence)
        self._daemon.uploader.hurry(notice.seconds)
        self._training.request_save()
        self._daemon.stop.wake.set()
