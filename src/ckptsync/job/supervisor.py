"""A job from the first start of its training to the exit code: notices, restarts, and the watcher beside it all the while."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from ckptsync.checkpoint import Checkpoint
from ckptsync.errors import CkptsyncError, LockedError, PreemptedError
from ckptsync.job import grace_period
from ckptsync.job.preemption import Notice, Notices, Source
from ckptsync.job.restart_policy import RestartPolicy
from ckptsync.restore import sources
from ckptsync.upload.daemon import Daemon

log = logging.getLogger(__name__)

MERCY = 10.0
"""Seconds after the announced end for which a store that is away is still tried, where the machine is still there then."""

OTHERS_PATIENCE = 60.0
"""Seconds to wait for the receipt of another watcher where nobody says how long the machine has."""


class Training(Protocol):
    """What trains: started here, or found running."""

    def signal(self, number: int) -> None:
        """Send a signal to all of it."""
        ...

    def ask(self, number: int) -> None:
        """Ask it to save and to leave."""
        ...

    def ended(self) -> bool:
        """Whether nothing of it is left."""
        ...

    def wait(self, woken: threading.Event | None = None) -> int | None:
        """Wait for its end and return the exit code, None where nobody knows it. Sets `woken` then."""
        ...


@dataclass(frozen=True, slots=True)
class Start:
    """All that one start of the training takes, up to the start itself, and the step that it goes on from; 0 for a fresh one."""

    training: Callable[[], Training]
    step: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What a job is promised and allowed: where notices come from, the seconds between notice and end, how many restarts."""

    sources: Sequence[Source] = ()
    grace: float | None = None
    restarts: int = 0


class Supervisor:
    """Keeps one training going while a Daemon follows its output folder.

    A notice, SIGTERM or SIGUSR1 asks the training to save and to leave, and what it saves is uploaded first. SIGINT is passed on
    and means that a person wants the end. The same signal a second time kills the training and quits.

    `begin` brings the newest checkpoint into its place and returns how to start from it, or None when there is nothing left to
    train. It is called again for every restart.
    """

    def __init__(self, daemon: Daemon, begin: Callable[[], Start | None], terms: Terms) -> None:
        self.notice: Notice | None = None
        self._daemon = daemon
        self._begin = begin
        self._terms = terms
        # The service is not ready before the training was started.
        daemon.begun = False
        self._restarts = RestartPolicy(terms.restarts)
        self._fit = grace_period.Fit()
        self._inbox: queue.SimpleQueue[tuple[Notice, int] | None] = queue.SimpleQueue()
        self._notices = Notices(terms.sources, lambda notice: self._inbox.put((notice, signal.SIGTERM)))
        self._signals: list[int] = []
        self._training: Training | None = None
        self._watching = False
        self._elsewhere = False
        self._changing = threading.Lock()
        self._over = threading.Event()
        self._asked = threading.Event()
        self._deadline: float | None = None
        self._noticed_at: float | None = None

    def run(self) -> int:
        """Start the training, see it to its end, and return the exit code for the whole.

        That is the training's own code, 75 where a notice ended it and everything is durable, 0 where nothing was left to do.
        """
        with self._listening():
            first = self._begin()
            if first is None:
                self._daemon.manager.ready("the training is finished")
                self._take_the_rest()
                return 0
            with self._watched():
                code = self._see_through(first)
            return self._judge(code)

    def _take_the_rest(self) -> None:
        """Nothing is left to train, but a watcher that was killed may have left something that is not durable."""
        with contextlib.suppress(LockedError), self._daemon.held():
            self._daemon.follow(ended=lambda: True)
            self._daemon.raise_outcome()

    def _see_through(self, start: Start | None) -> int | None:
        """Start after start, until one ends for good. Returns its exit code."""
        while start is not None:
            self._daemon.resumed()
            with self._changing:
                # From here on a notice finds a training to ask; one that came before leaves nothing to start.
                if self._asked.is_set():
                    return None
                training = self._training = start.training()
            self._daemon.begun = True
            self._daemon.stop.wake.set()
            code = training.wait()
            if self._ends(code, start):
                return code
            start = None if self._asked.is_set() else self._begin()
        return 0

    def _ends(self, code: int | None, start: Start) -> bool:
        """Whether that was the last start. Otherwise returns after the pause before the next one."""
        self._training = None
        newest = self._newest()
        if self._left(newest) or signal.SIGINT in self._signals or self._daemon.restarted or _finished(newest):
            return True
        if code == 0:
            log.info("the training ended by itself before its last step; it is not started again")
            return True
        if code is None:
            log.warning("the training that was found running has ended before its last step")
            return False
        decision = self._restarts.after(code, before=start.step, reached=newest.step if newest else 0)
        log.log(logging.ERROR if decision.pause is None else logging.WARNING, "%s", decision.reason)
        if decision.pause is None:
            return True
        self._daemon.spool.record("restart", code=code, step=newest.step if newest else 0)
        return self._asked.wait(decision.pause)

    def _left(self, newest: Checkpoint | None) -> bool:
        """Whether the training left because the machine goes away: we know it, or the training itself was told."""
        return self.notice is not None or (newest is not None and self._daemon.spool.preempted(newest.name, newest.fingerprint))

    def _judge(self, code: int | None) -> int:
        """The exit code for the whole, once all is over. Raises what a user has to know of."""
        newest = self._newest()
        if newest and self._noticed_at is not None and newest.saved_at >= self._noticed_at:
            # It has left as asked. What started over after that is the doing of a launcher that starts ranks anew.
            self._daemon.restarted = None
        self._daemon.raise_outcome()
        if _finished(newest) or not self._left(newest) or signal.SIGINT in self._signals:
            return code or 0
        self._wait_for_others(newest)
        if self._durable(newest):
            step = newest.step if newest else 0
            self._daemon.spool.record("preempted", step=step, source=self.notice.source if self.notice else "the training")
            log.warning("preempted at step %d, everything is durable: start the same command again", step)
            return PreemptedError.exit_code
        if code and code != PreemptedError.exit_code:
            return code
        raise CkptsyncError(
            f"preempted, and {newest.name if newest else 'the last checkpoint'} is not durable",
            hint="It waits in .ckptsync/spool: start the same command again where this folder is.",
        )

    def _newest(self) -> Checkpoint | None:
        """The whole checkpoint that was saved last, but none of a training that started over."""
        whole, _ = sources.local_checkpoints(self._daemon.spool.output_dir)
        return max(sources.before_restart(whole, self._daemon.spool), key=lambda each: (each.saved_at, each.step), default=None)

    def _durable(self, newest: Checkpoint | None) -> bool:
        spool = self._daemon.spool
        known = newest is None or spool.receipt_path(f"{newest.name}.{newest.fingerprint}").exists()
        return known and not spool.pending()

    def _wait_for_others(self, newest: Checkpoint | None) -> None:
        """Where another watcher holds the folder, the receipt is its work."""
        deadline = self._deadline or time.monotonic() + OTHERS_PATIENCE
        while self._elsewhere and not self._durable(newest) and time.monotonic() < deadline:
            threading.Event().wait(0.2)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Follow the output folder in a thread of its own while the block lasts, and after it until all is uploaded."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._daemon.held())
            except LockedError as error:
                log.warning("%s; its uploads count", error)
                self._elsewhere = True
                self._daemon.manager.ready(f"training; {error}")
                self._daemon.manager.unwatched()
                yield
                return
            self._watching = True
            failed: list[BaseException] = []
            thread = threading.Thread(target=self._follow, args=(failed,), name="watcher")
            thread.start()
            try:
                yield
            finally:
                self._over.set()
                self._daemon.stop.wake.set()
                thread.join()
                self._watching = False
            if failed:
                raise failed[0]

    def _follow(self, failed: list[BaseException]) -> None:
        try:
            self._daemon.follow(ended=self._is_over)
        except BaseException as error:
            log.error("the watcher failed, the training goes on: %s: %s", type(error).__name__, error)
            self._daemon.manager.unwatched()
            failed.append(error)

    def _is_over(self) -> bool:
        """Asked by the watching loop at every turn, which makes it the place to look at the rate as well."""
        self._fit.tell(self._daemon.uploader.pace(), self._terms.grace or grace_period.usual(self._notices.found))
        return self._over.is_set()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Take signals and notices while the block lasts. Both are dealt with in one thread, in the order of their coming."""
        dealing = threading.Thread(target=self._deal, name="notices", daemon=True)
        dealing.start()
        self._notices.start()
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            with self._daemon.stop.on_signals():
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._notices.stop()
            self._inbox.put(None)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        """Runs in the middle of anything, so it only takes note; but the same signal twice means: now."""
        if number in self._signals and number != signal.SIGUSR1:
            if self._training:
                self._training.signal(signal.SIGKILL)
            self._daemon.uploader.kill()
            os._exit(128 + number)
        if number == signal.SIGINT and not (self._training or self._watching):
            raise KeyboardInterrupt
        self._signals.append(number)
        self._inbox.put((Notice(signal.Signals(number).name, self._terms.grace), number))

    def _deal(self) -> None:
        while (item := self._inbox.get()) is not None:
            notice, number = item
            if number == signal.SIGINT:
                self._asked.set()
                if self._training:
                    self._training.signal(number)
            elif not notice.final:
                self._daemon.spool.record("hint", source=notice.source)
                log.warning("%s recommends to leave this machine; it may be taken away soon, nobody says when", notice.source)
            else:
                with self._changing:
                    self._leave(notice, number)

    def _leave(self, notice: Notice, number: int) -> None:
        """The machine goes away: ask the training to save, and upload that first. Another notice may only shorten the time."""
        if not (self._training or self._watching or self._elsewhere or self._over.is_set()):
            self._leave_early(notice)
        first = self.notice is None
        self.notice = self.notice or notice
        self._noticed_at = self._noticed_at or time.time()
        self._asked.set()
        if notice.seconds is not None:
            end = time.monotonic() + notice.seconds
            self._deadline = end if self._deadline is None else min(end, self._deadline)
        if not first:
            return
        self._daemon.manager.stopping()
        log.warning("this machine goes away: notice of %s; asking the training to save", notice)
        self._daemon.spool.record("notice", source=notice.source, seconds=notice.seconds)
        self._daemon.uploader.hurry(notice.seconds)
        if self._training:
            self._training.ask(number)
        threading.Thread(target=self._press, name="deadline", daemon=True).start()

    def _leave_early(self, notice: Notice) -> None:
        """Before the training was started there is nothing to save. What was downloaded so far is found again."""
        waiting = self._daemon.spool.pending()
        log.warning("this machine goes away: notice of %s, before the training was started", notice)
        os._exit(128 + signal.SIGTERM if waiting else PreemptedError.exit_code)

    def _press(self) -> None:
        """See to it that the newest goes first. When the time is up and the training has ended, end the waiting for a store."""
        pause = threading.Event()
        while not (self._over.is_set() and self._deadline and time.monotonic() > self._deadline + MERCY):
            with contextlib.suppress(OSError):
                self._daemon.uploader.give_way()
            pause.wait(0.5)
        self._daemon.stop.request()


def _finished(newest: Checkpoint | None) -> bool:
    """Whether the training reached its last step. An exit code never proves it."""
    return newest is not None and newest.verdict.state is not None and newest.verdict.state.finished
