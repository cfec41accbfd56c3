"""Signals and preemption notices end a job. One thread handles them in the order of their arrival."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from ckptsync import signals
from ckptsync.errors import CkptsyncError, PreemptedError
from ckptsync.job.preemption.listener import NoticeListener
from ckptsync.job.preemption.notice import Notice, Source
from ckptsync.job.training import Training, find_running
from ckptsync.job.watch_thread import WatchThread
from ckptsync.restore import sources
from ckptsync.upload.daemon import Daemon

log = logging.getLogger(__name__)

OVERTIME = 10.0
"""Seconds after the deadline for which an unreachable store is still retried, in case the machine is still up."""

END_SECONDS = 30.0
"""Seconds that a training whose saves are of no use has to exit after its SIGTERM."""

PERSONAL = frozenset({signal.SIGINT, signal.SIGQUIT})
"""What a person types at a terminal, Ctrl-C and Ctrl-\\, to end what runs there."""


class Shutdown:
    """Ends the training at a notice or a signal.

    A notice, SIGTERM, SIGUSR1 or SIGUSR2 asks it to save and exit, and what it saves is uploaded first. SIGINT and SIGQUIT are
    passed on: a person wants the end. SIGTERM or SIGINT a second time kills the training and exits at once; SIGQUIT is passed on
    again, since a program may answer it with its stack traces and go on.
    """

    def __init__(self, daemon: Daemon, watch: WatchThread, sources: Sequence[Source], grace: float | None) -> None:
        self.notice: Notice | None = None
        """The first final notice."""
        self.restarted_before = False
        """Whether the training had restarted from scratch before the notice."""
        self.deadline: float | None = None
        """When the machine is expected to go, by the monotonic clock."""
        self.requested = threading.Event()
        """Set when no training may be started any more."""
        self._daemon = daemon
        self._watch = watch
        self._grace = grace
        self._inbox: queue.SimpleQueue[tuple[Notice, int] | None] = queue.SimpleQueue()
        self._listener = NoticeListener(sources, lambda notice: self._inbox.put((notice, signal.SIGTERM)))
        self._signals: list[int] = []
        self._repeats = signals.Repeats()
        self._training: Training | None = None
        self._changing = threading.Lock()

    @property
    def interrupted(self) -> bool:
        """Whether a person wants the end (SIGINT, SIGQUIT)."""
        return not PERSONAL.isdisjoint(self._signals)

    @property
    def providers(self) -> Sequence[str]:
        """The providers whose metadata services this machine has."""
        return self._listener.found

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals and notices while the block runs."""
        threading.Thread(target=self._handle_all, name="notices", daemon=True).start()
        self._listener.start()
        # On a terminal, SIGHUP says that the terminal is gone.
        numbers = (signal.SIGTERM, *PERSONAL, *signals.ANNOUNCING, *([signal.SIGHUP] if os.isatty(0) else []))
        try:
            with (
                signals.handled(numbers, self._note_signal),
                signals.handled([signal.SIGTSTP], self._suspend),
                self._daemon.stop.on_signals(),
            ):
                yield
        finally:
            self._listener.stop()
            self._inbox.put(None)

    def start(self, training: Callable[[], Training]) -> Training | None:
        """Start a training that can be shut down from then on. None if a shutdown was requested before."""
        with self._changing:
            if self.requested.is_set():
                return None
            self._training = training()
            return self._training

    def training_ended(self) -> None:
        """There is no training to shut down any more."""
        self._training = None

    def end_useless(self, error: CkptsyncError) -> None:
        """End a training none of whose saves may be uploaded: it restarted from scratch, or another machine took its run over.

        Not after a notice: then it saved as asked, and a launcher may have started it again.
        """
        with self._changing:
            training = self._training
            if training is None or self.requested.is_set():
                return
            self.requested.set()
        log.error("ending the training: %s", error)
        training.signal(signal.SIGTERM)
        killing = threading.Timer(END_SECONDS, training.signal, [signal.SIGKILL])
        killing.daemon = True
        killing.start()

    def _note_signal(self, number: int) -> None:
        """Queue the signal; the same one later again exits at once, whatever the thread that handles them is doing."""
        insisted = self._repeats.insisted(number)
        if number in self._signals and number not in (signal.SIGQUIT, *signals.ANNOUNCING):
            if not insisted:
                return
            if self._training:
                self._training.signal(signal.SIGKILL)
            self._daemon.uploader.kill()
            os._exit(128 + number)
        if number == signal.SIGQUIT and not self._training:
            self._daemon.uploader.kill()
            os._exit(128 + number)
        if number == signal.SIGINT and not (self._training or self._watch.running):
            log.error("interrupted")
            os._exit(128 + number)
        self._signals.append(number)
        self._inbox.put((Notice(signal.Signals(number).name, self._grace), number))

    def _suspend(self, _number: int) -> None:
        if self._training:
            self._training.suspend()
        else:
            signal.raise_signal(signal.SIGSTOP)

    def _handle_all(self) -> None:
        while (item := self._inbox.get()) is not None:
            notice, number = item
            if number in PERSONAL:
                self._interrupt(number)
            elif not notice.final:
                self._daemon.spool.history.record("hint", source=notice.source)
                log.warning("%s recommends leaving this machine: it may be preempted at any time", notice.source)
            else:
                with self._changing:
                    self._preempt(notice, number)

    def _interrupt(self, number: int) -> None:
        self.requested.set()
        if self._training:
            self._training.signal(number)

    def _preempt(self, notice: Notice, number: int) -> None:
        """Ask the training to save, and upload that save first. A further notice can only shorten the time."""
        if not (self._training or self._watch.running or self._watch.elsewhere or self._watch.finishing.is_set()):
            self._exit_before_start(notice)
        first = self.notice is None
        self.notice = self.notice or notice
        self.requested.set()
        if notice.seconds is not None:
            end = time.monotonic() + notice.seconds
            self.deadline = end if self.deadline is None else min(end, self.deadline)
        if not first:
            return
        self.restarted_before = self._daemon.restarted is not None
        self._daemon.manager.stopping()
        log.warning("preemption notice from %s: asking the training to save", notice)
        self._daemon.spool.history.record("notice", source=notice.source, seconds=notice.seconds)
        self._daemon.uploader.hurry(notice.seconds)
        if self._training:
            # SIGUSR2 may mean anything to a training; SyncCallback takes the other two.
            self._training.request_save(number if number == signal.SIGUSR1 else signal.SIGTERM)
        threading.Thread(target=self._upload_newest_until_deadline, name="deadline", daemon=True).start()

    def _exit_before_start(self, notice: Notice) -> None:
        """No training was started, so there is nothing to save. The next start finds what was downloaded so far."""
        undurable = self._undurable()
        log.warning("preemption notice from %s, before the training was started%s", notice, undurable and f": {undurable}")
        self._daemon.give_up_run()
        os._exit(128 + signal.SIGTERM if undurable else PreemptedError.exit_code)

    def _undurable(self) -> str:
        """What an earlier start left that another machine would not find; empty if nothing."""
        spool = self._daemon.spool
        if self._daemon.watch.settings.mode != "online":
            return ""
        if find_running(spool.output_dir):
            return "the training of an earlier start is still running"
        complete, _ = sources.local_checkpoints(spool.output_dir)
        newest = max(complete, key=lambda each: each.step, default=None)
        waiting = spool.pending() or (newest is not None and f"{newest.name}.{newest.fingerprint}" not in spool.receipts)
        return "not everything in this folder is durable" if waiting else ""

    def _upload_newest_until_deadline(self) -> None:
        """Keep the newest snapshot first in the queue. After the deadline and the training's end, stop retrying the store."""
        pause = threading.Event()
        while not (self._watch.finishing.is_set() and self.deadline and time.monotonic() > self.deadline + OVERTIME):
            with contextlib.suppress(OSError):
                self._daemon.uploader.give_way()
            pause.wait(0.5)
        self._daemon.stop.request()
