"""Hints that something happened in a folder: the only module that knows watchdog.

Events are hints, scans are the truth: NFS sends none, and inotify's queue overflows silently. So all that an event does is to
end the loop's wait early.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirModifiedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

log = logging.getLogger(__name__)

# It reports its own stop as an error (watchdog 7.1).
logging.getLogger("watchdog.observers.inotify").setLevel(logging.CRITICAL)


class Hints(FileSystemEventHandler):
    """Sets `wake` when a name appears in one of the folders. Not recursive: one watch a folder, however many checkpoints."""

    def __init__(self, folders: list[Path], wake: threading.Event) -> None:
        self._wake = wake
        self._observer = Observer()
        for folder in folders:
            self._observer.schedule(
                self,
                str(folder),
                event_filter=[
                    DirCreatedEvent,
                    DirMovedEvent,
                    DirModifiedEvent,
                    FileClosedEvent,
                    FileCreatedEvent,
                    FileMovedEvent,
                ],
            )

    def start(self) -> None:
        """Begin to listen. Where the system has no watch to give, say so once and rely on scans.

        Raises FileNotFoundError if one of the folders is gone.
        """
        try:
            self._observer.start()
        except OSError as error:
            self._observer.unschedule_all()
            if isinstance(error, FileNotFoundError):
                raise
            log.warning("no file events here (%s): relying on scans alone", error)

    def stop(self) -> None:
        """End the listening thread."""
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Called by watchdog for each event."""
        self._wake.set()
