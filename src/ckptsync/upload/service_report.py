"""What the service manager hears of a watcher: that it is ready, that its loop is alive, and how things stand."""

from __future__ import annotations

from ckptsync.checkpoint import step_of
from ckptsync.service import notify
from ckptsync.upload.held_folder import checkpoint_of
from ckptsync.upload.spool import Spool
from ckptsync.upload.status_line import StatusLine
from ckptsync.upload.version_upload import VersionUpload


class ServiceReport:
    """Reports to one manager. The service counts as ready at the first report after `begun` became true."""

    def __init__(self, manager: notify.Manager, spool: Spool, uploads: VersionUpload) -> None:
        self.begun = True
        self._manager = manager
        self._spool = spool
        self._uploads = uploads
        self._ready = False

    def send(self) -> None:
        """Report that the loop is alive, and the status line. The first time, this makes the service ready."""
        status = self._status()
        if self.begun and not self._ready:
            self._ready = True
            self._manager.ready(status)
        self._manager.alive()
        self._manager.status(status)

    def reloaded(self) -> None:
        """Report that the settings have been read again."""
        self._manager.ready(self._status())

    def _status(self) -> str:
        try:
            return str(self._line())
        except OSError as error:
            return f"cannot read the queue: {error.strerror}"

    def _line(self) -> StatusLine:
        names = self._spool.waiting()
        durable, progress = self._uploads.durable, self._uploads.progress
        return StatusLine(
            durable=durable.step if durable else None,
            newest=max((step for name in names if (step := step_of(checkpoint_of(name))) is not None), default=None),
            waiting=len(names),
            uploading=progress.snapshot.checkpoint if progress else None,
            percent=100 * progress.done // progress.total if progress and progress.total else None,
            rate=self._uploads.rate,
        )
