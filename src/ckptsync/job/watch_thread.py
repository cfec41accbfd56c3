"""The watcher beside a training: a Daemon in a thread of this process, unless another watcher already holds the folder."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from ckptsync.errors import LockedError
from ckptsync.upload.daemon import Daemon

log = logging.getLogger(__name__)

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
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._daemon.held())
            except LockedError as error:
                self._leave_to(error)
                yield
                return
            self.running = True
            failed: list[BaseException] = []
            thread = threading.Thread(target=self._follow, args=(failed,), name="watcher")
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

    def _leave_to(self, other: LockedError) -> None:
        """Leave the uploads to the watcher that holds the folder. No loop of ours is alive then for the service manager."""
        log.warning("%s; leaving the uploads to it", other)
        self.elsewhere = True
        self._daemon.manager.ready(f"training; {other}")
        self._daemon.manager.unwatched()

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
