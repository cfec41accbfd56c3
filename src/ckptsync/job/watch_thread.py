"""The watcher beside a training: a Daemon in a thread of this process, unless another watcher already holds the folder."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from ckptsync.errors import LockedError
from ckptsync.upload.daemon import Daemon

log = logging.getLogger(__name__)

TAKE_OVER_PAUSE = 2.0
"""Seconds between two attempts to hold a folder that another watcher holds."""

RESTART_PAUSE = 5.0
"""Seconds until a watcher that failed is started again."""


class WatchThread:
    """Runs the daemon for as long as a training runs, and after it until everything is uploaded.

    `every_turn` is called at every turn of the daemon's loop.
    """

    def __init__(self, daemon: Daemon, every_turn: Callable[[], None], *, pause: float = RESTART_PAUSE) -> None:
        self.running = False
        self.elsewhere = False
        """Whether another watcher holds the folder, so that uploads and receipts are its work."""
        self.finishing = threading.Event()
        """Set when the training has ended for good: upload what is left, then stop."""
        self._daemon = daemon
        self._every_turn = every_turn
        self._pause = pause

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Watch while the block runs. Raises in the end what the daemon raised."""
        failed: list[BaseException] = []
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._daemon.held())
            except LockedError as error:
                self.leave_to(error)
            self.running = not self.elsewhere
            thread = threading.Thread(target=self._take_over if self.elsewhere else self._follow, args=(failed,), name="watcher")
            thread.start()
            try:
                yield
            finally:
                self.finishing.set()
                self._daemon.stop.wake.set()
                thread.join()
                self.running = False
            if failed:
                raise failed[0]

    def leave_to(self, other: LockedError) -> None:
        """Leave the uploads to the watcher that holds the folder. No loop of ours is alive then for the service manager."""
        log.warning("%s; leaving the uploads to it", other)
        self.elsewhere = True
        self._daemon.manager.ready(f"training; {other}")
        self._daemon.manager.unwatched()

    def _take_over(self, failed: list[BaseException]) -> None:
        """Watch as soon as the other watcher lets the folder go. It may be a `push` that takes a minute, or be killed."""
        while self.elsewhere and not self.finishing.wait(TAKE_OVER_PAUSE):
            self._daemon.take_up_verdict()
            self._every_turn()
            with contextlib.suppress(LockedError), self._daemon.held():
                log.warning("%s is free: uploading from here", self._daemon.spool.output_dir)
                self.elsewhere, self.running = False, True
                self._follow(failed)

    def finish_elsewhere(self, durable: Callable[[], bool], seconds: float) -> None:
        """Wait so long for what another watcher has to upload, and upload the rest once that one lets the folder go."""
        deadline = time.monotonic() + seconds
        while self.elsewhere and not durable() and time.monotonic() < deadline:
            with contextlib.suppress(LockedError), self._daemon.held():
                self.elsewhere = False
                self._daemon.follow(ended=lambda: True)
            threading.Event().wait(0.2)

    def _follow(self, failed: list[BaseException]) -> None:
        """Watch until the training has ended. A watcher that fails is started again: the training may go on for a week."""
        while True:
            try:
                self._daemon.follow(ended=self._ended)
            except Exception as error:
                log.error("the watcher failed, the training continues: %s: %s", type(error).__name__, error)
                self._daemon.manager.unwatched()
                if self._over or self.finishing.wait(self._pause):
                    failed.append(error)
                    return
                log.warning("watching again")
            else:
                return

    @property
    def _over(self) -> bool:
        return self.finishing.is_set() or self._daemon.stop.event.is_set()

    def _ended(self) -> bool:
        self._every_turn()
        return self.finishing.is_set()
