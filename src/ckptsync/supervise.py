"""A training with its watcher beside it, from the start of the command to the exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from ckptsync import resume
from ckptsync.daemon import Daemon
from ckptsync.errors import LockedError, PreemptedError
from ckptsync.launch import Training

log = logging.getLogger(__name__)


class Supervisor:
    """Passes signals on to the training, follows its output folder until it has ended, and judges how it ended.

    The first SIGTERM or SIGINT goes to the whole process group of the training, which may save once more; what it saves is
    uploaded. The second one kills the training and quits.
    """

    def __init__(self, daemon: Daemon) -> None:
        self.preempted = False
        self._daemon = daemon
        self._training: Training | None = None

    def run(self, training: Training) -> int:
        """Stay beside the training until it has ended and what it saved is durable. Returns the exit code for the whole.

        That is the training's own code, or 75 where a signal ended it before its last step and everything is durable.
        """
        self._training = training
        waiter = threading.Thread(target=training.wait, args=(self._daemon.stop.wake,), daemon=True)
        waiter.start()
        with self._signals():
            with contextlib.suppress(LockedError), self._daemon.held():
                self._daemon.follow(ended=training.ended)
            waiter.join()
        code = training.wait()
        self._daemon.raise_outcome()
        return PreemptedError.exit_code if self._preempted_in_time() else code

    def _preempted_in_time(self) -> bool:
        """Whether a signal cut the training short and its last whole checkpoint is durable."""
        if not self.preempted:
            return False
        spool = self._daemon.spool
        whole, _ = resume.local_checkpoints(spool.output_dir)
        newest = max(whole, key=lambda each: (each.saved_at, each.step), default=None)
        if newest is None or (newest.verdict.state and newest.verdict.state.finished):
            return False
        return spool.receipt_path(f"{newest.name}.{newest.fingerprint}").exists() and not spool.pending()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        assert self._training is not None  # noqa: S101 - handlers are set after it
        if self.preempted:
            self._training.signal(signal.SIGKILL)
            self._daemon.uploader.kill()
            os._exit(128 + number)
        self.preempted = True
        self._training.signal(number)
