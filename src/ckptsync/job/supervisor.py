"""A job from the first start of its training to the exit code: starts and restarts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ckptsync import record
from ckptsync.errors import LockedError
from ckptsync.job import grace_period
from ckptsync.job.outcome import Outcome
from ckptsync.job.preemption.notice import Source
from ckptsync.job.restart_policy import RestartPolicy
from ckptsync.job.shutdown import Shutdown
from ckptsync.job.training import Training
from ckptsync.job.watch_thread import WatchThread
from ckptsync.upload.daemon import Daemon

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the training, prepared: `training` starts it, `step` is where it continues; 0 for a fresh one."""

    training: Callable[[], Training]
    step: int


@dataclass(frozen=True, slots=True)
class Terms:
    """The sources of preemption notices, the grace period in seconds if the user set one, and how many restarts are allowed."""

    sources: Sequence[Source] = ()
    grace: float | None = None
    restarts: int = 0


class Supervisor:
    """Keeps one training running while a Daemon watches its output folder, and shuts it down when asked to.

    `prepare` places the newest checkpoint and returns how to start from it, or None when nothing is left to train. It is called
    again for every restart.
    """

    def __init__(self, daemon: Daemon, prepare: Callable[[], Start | None], terms: Terms) -> None:
        self._daemon = daemon
        self._prepare = prepare
        self._terms = terms
        # The service is not ready until the training was started.
        daemon.report.begun = False
        self._restarts = RestartPolicy(terms.restarts)
        self._grace_check = grace_period.GraceCheck()
        self._watch = WatchThread(daemon, self._every_turn)
        self._shutdown = Shutdown(daemon, self._watch, terms.sources, terms.grace)
        self._outcome = Outcome(daemon, self._shutdown, self._watch)

    def run(self) -> int:
        """Run the training to its end, with restarts, and return the exit code of the whole.

        That is the training's own code, 75 if it was preempted and everything is durable, 0 if nothing was left to train.
        """
        with self._shutdown.listening():
            first = self._prepare()
            if first is None:
                self._daemon.manager.ready("the training is finished")
                self._upload_the_rest()
                return 0
            with self._watch.beside():
                code = self._run_to_the_end(first)
            return self._outcome.exit_code(code)

    def _upload_the_rest(self) -> None:
        """Upload what a killed watcher may have left of a finished training."""
        try:
            with self._daemon.held():
                self._daemon.follow(ended=lambda: True)
        except LockedError as error:
            self._watch.leave_to(error)
        self._outcome.raise_undurable()

    def _run_to_the_end(self, start: Start | None) -> int | None:
        """Start and restart until the training ends for good. Returns its exit code."""
        while start is not None and not self._daemon.lost:
            self._daemon.resumed()
            training = self._shutdown.start(start.training)
            if training is None:
                return None
            self._daemon.report.begun = True
            self._daemon.stop.wake.set()
            code = training.wait()
            self._daemon.spool.move_in(though_empty=True)
            self._shutdown.training_ended()
            code = self._outcome.unhidden(code, outlived=training.outlived)
            if self._ended_for_good(code, start, outlived=training.outlived):
                return code
            start = None if self._shutdown.requested.is_set() else self._prepare()
        return 0

    def _ended_for_good(self, code: int | None, start: Start, *, outlived: bool) -> bool:
        """Whether this was the last start. If not, returns after the pause before the next one."""
        newest = self._outcome.newest()
        finished = self._outcome.finished(newest, code)
        useless = self._daemon.lost or self._daemon.restarted
        # One that outlived its command may have failed after its last step: the next start does what follows that again.
        seen = code == 0 and not outlived
        if finished and seen and not useless and not self._outcome.lost_save():
            self._daemon.completed = True
            # A program that deletes its output folder at its end left nothing to note it in.
            with contextlib.suppress(FileNotFoundError):
                record.note_completed(self._daemon.spool.output_dir, self._daemon.watch.store)
        if self._outcome.preempted(newest) or self._shutdown.interrupted or useless or finished:
            return True
        if code == 0:
            log.warning("%s: not restarting it", self._outcome.early_end(newest))
            return True
        if code is None:
            log.warning("the training that was already running has ended before its last step")
            return False
        reached = newest.step if newest else 0
        decision = self._restarts.after(code, before=start.step, reached=reached)
        log.log(logging.ERROR if decision.pause is None else logging.WARNING, "%s", decision.reason)
        if decision.pause is None:
            return True
        self._daemon.spool.history.record("restart", code=code, step=reached)
        return self._shutdown.requested.wait(decision.pause)

    def _every_turn(self) -> None:
        self._check_grace()
        if useless := self._daemon.lost or self._daemon.restarted:
            self._shutdown.end_useless(useless)

    def _check_grace(self) -> None:
        """Warn if an upload, at the measured rate, would not fit into the grace period."""
        grace = self._terms.grace or grace_period.usual(self._shutdown.providers)
        self._grace_check.warn(self._daemon.uploader.pace(), grace)
