"""Beside a training that something else started: at a notice, ask its ranks to save, and upload that first."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator, Sequence

from ckptsync.job import grace_period
from ckptsync.job.launch import LeftRunning
from ckptsync.job.preemption.listener import NoticeListener
from ckptsync.job.preemption.notice import Notice, Source
from ckptsync.upload.daemon import Daemon

log = logging.getLogger(__name__)


class Sidecar:
    """What a watcher beside a training that it didn't start does at a notice. Signals only ranks that carry a SyncCallback."""

    def __init__(self, daemon: Daemon, sources: Sequence[Source], grace: float | None) -> None:
        self.notice: Notice | None = None
        self._daemon = daemon
        self._grace = grace
        self._fit = grace_period.Fit()
        self._training = LeftRunning(daemon.spool.output_dir)
        self._asked = False
        self._notices = NoticeListener(sources, self._leave)

    @contextlib.contextmanager
    def kept(self) -> Iterator[Sidecar]:
        """Follow the notices while the block lasts."""
        self._notices.start()
        try:
            yield self
        finally:
            self._notices.stop()

    def ended(self) -> bool:
        """Whether a notice came and the training that was asked to save has left. One that can't be asked is followed on."""
        self._fit.tell(self._daemon.uploader.pace(), self._grace or grace_period.usual(self._notices.found))
        return self._asked and self._training.ended()

    def preempted(self) -> bool:
        """Whether a notice came and all that was saved is durable."""
        return self.notice is not None and not self._daemon.spool.pending()

    def _leave(self, notice: Notice) -> None:
        spool = self._daemon.spool
        spool.record("notice" if notice.final else "hint", source=notice.source, seconds=notice.seconds)
        if not notice.final:
            log.warning("%s recommends to leave this machine; it may be taken away soon, nobody says when", notice.source)
            return
        self.notice = notice
        self._asked = not self._training.ended()
        doing = "asking the training to save" if self._asked else "no rank here has a SyncCallback that could save"
        log.warning("this machine goes away: notice of %s; %s", notice, doing)
        self._daemon.uploader.hurry(notice.seconds)
        self._training.ask(signal.SIGTERM)
        self._daemon.stop.wake.set()
