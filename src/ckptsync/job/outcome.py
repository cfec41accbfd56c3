"""What a job came to: finished, preempted or failed, and whether everything is durable. Decides the exit code."""

from __future__ import annotations

import logging
import time

from ckptsync import record
from ckptsync.checkpoint import Checkpoint, step_of
from ckptsync.errors import CkptsyncError, HookMissingError, IntegrityError, PreemptedError
from ckptsync.job.shutdown import Shutdown
from ckptsync.job.watch_thread import WatchThread
from ckptsync.restore import sources
from ckptsync.upload.daemon import Daemon

log = logging.getLogger(__name__)

INTERRUPTED = 130
"""The exit code after a Ctrl-C, where the training's own can't be had."""

RECEIPT_WAIT = 60.0
"""Seconds to wait for the receipt of another watcher when no deadline is known."""


class Outcome:
    """Reads the result of a training from its checkpoints and receipts; an exit code alone proves nothing."""

    def __init__(self, daemon: Daemon, shutdown: Shutdown, watch: WatchThread) -> None:
        self._daemon = daemon
        self._shutdown = shutdown
        self._watch = watch

    def newest(self) -> Checkpoint | None:
        """The complete checkpoint that was saved last, none of a training that started over."""
        spool = self._daemon.spool
        complete, _ = sources.local_checkpoints(spool.output_dir)
        return sources.newest(sources.before_restart(complete, spool), spool)

    def preempted(self, newest: Checkpoint | None) -> bool:
        """Whether the training ended because of a preemption: this process got the notice, or the training itself did."""
        if self._shutdown.notice is not None:
            return True
        return newest is not None and self._daemon.spool.markers.preempted(newest.name, newest.fingerprint)

    def finished(self, newest: Checkpoint | None, code: int | None) -> bool:
        """Whether the training came to its last step and did what follows. No exit code or checkpoint alone proves that.

        The Trainer may have deleted the last checkpoint (save_total_limit=1 with load_best_model_at_end), so its own word counts,
        or the program its whole folder, so that what became durable does.
        """
        at_end = newest is not None and newest.verdict.state is not None and newest.verdict.state.finished
        at_end = at_end or self._daemon.uploader.uploads.finished
        return not code and (at_end or record.read(self._daemon.spool.output_dir).reached_end)

    def early_end(self, newest: Checkpoint | None) -> str:
        """Where a training came to that exited with 0 before its last step, and what continues it."""
        state = newest.verdict.state if newest else None
        if state is None or not state.max_steps:
            return "the training exited with 0 before its last step"
        # The newest save may be gone already: the Trainer keeps the best one alone.
        step = max(state.global_step, self._daemon.pinner.restart_detection.step)
        return f"the training ended by itself at step {step} of {state.max_steps}, and the same command goes on from there"

    def unhidden(self, code: int | None, *, outlived: bool) -> int | None:
        """The training's exit code: 1 where its command exited with 0 though the training failed, as it says itself.

        A shell has the exit status of the last program of a pipe, and a command that leaves the training behind has none of it.
        Of a training that the command waited for, an exception that ended the program counts, and a rank 0 that went away inside
        `train()` counts as killed; where it did so in the middle of a save, as `os._exit(0)` in a callback does, the save is what
        it wanted to leave.
        """
        if code != 0:
            return code
        if outlived and self._shutdown.interrupted:
            return INTERRUPTED
        known = record.read(self._daemon.spool.output_dir)
        if known.is_command or self._shutdown.requested.is_set() or self._daemon.restarted:
            return code
        newest = self.newest()
        if self.preempted(newest):
            return code
        step = newest.step if newest else 0
        if not (known.inside_train or known.uncaught or (outlived and known.raised)):
            return self._of_unseen(newest, known) if outlived else code
        if self.finished(newest, code) or (known.inside_train and not outlived and self._saving(newest, known)):
            log.warning("the training ended inside train(), with its save of step %d: counted as finished with that", step)
            return code
        what = "was killed inside train()" if known.inside_train else "failed in train()"
        cause = "it was left running and has none of its own" if outlived else "a pipe needs `set -o pipefail`"
        log.error("the training %s after its save of step %d; the exit status 0 is its command's: %s", what, step, cause)
        return 1

    def _of_unseen(self, newest: Checkpoint | None, known: record.Record) -> int:
        """The exit code of a training that outlived its command, and that says nothing of a failure."""
        resumed = known.attempt.resumed_step if known.attempt else None
        if not known.announced and (newest is None or newest.step <= (resumed or 0)):
            log.error("what the command left running has ended and never began to train; its exit status is not known")
            return 1
        if self.finished(newest, 0):
            log.warning("the exit status of the training is not known: the next start does again what follows its last step")
        return 0

    def _saving(self, newest: Checkpoint | None, known: record.Record) -> bool:
        """Whether the current attempt was still at the callbacks of its newest save, the last of which marks it."""
        resumed = known.attempt.resumed_step if known.attempt else None
        marked = newest is not None and self._daemon.spool.markers.of(newest.name, newest.fingerprint)
        return newest is not None and newest.step > (resumed or 0) and not marked

    def exit_code(self, code: int | None) -> int:
        """The exit code of the whole job, from that of its training. Raises CkptsyncError for what a user has to act on."""
        newest = self.newest()
        self._wait_for_other_watcher(newest)
        if newest and self._shutdown.notice is not None and not self._shutdown.restarted_before:
            # It saved as asked. A restart from scratch after that is the work of a launcher that starts ranks again.
            self._daemon.forgive_restart()
        self._daemon.raise_outcome()
        if self.finished(newest, code) or not self.preempted(newest) or self._shutdown.interrupted:
            if not code:
                self._daemon.raise_gone(ended=True)
                self._daemon.raise_unsettled()
                self._require_last_save()
                self._require_durable(newest)
                self._warn_of_missing_hook(newest)
                self._warn_of_none(newest)
            return code or 0
        self._daemon.raise_gone()
        self._require_last_save()
        if self._durable(newest):
            return self._report_preempted(newest)
        if code and code != PreemptedError.exit_code:
            return code
        raise CkptsyncError(
            f"preempted, and {newest.name if newest else 'the last checkpoint'} is not durable",
            hint="It is queued in .ckptsync/spool: start the same command again where this folder is.",
        )

    def lost_save(self) -> str | None:
        """The last save of the newest attempt if it was gone before it could be pinned; older ones may be rotated away.

        Only `SyncCallback` can tell. None where nothing is uploaded, or nothing but a finished model.
        """
        spool, settings = self._daemon.spool, self._daemon.watch.settings
        known = record.read(spool.output_dir)
        if known.attempt is None or settings.mode == "disabled" or (settings.only_model and not known.reached_end):
            return None
        return spool.lost_save(known.attempt.number)

    def _require_last_save(self) -> None:
        if lost := self.lost_save():
            raise CkptsyncError(
                f"{lost} is not durable: it was gone before it could be pinned (a callback that moves or packs checkpoints?)",
                hint="Let that callback copy, and leave the deleting to save_total_limit; then start the same command again.",
            )

    def _warn_of_missing_hook(self, newest: Checkpoint | None) -> None:
        """Warn of a command that the hook missed, and that ended early without a save. It may be no training at all."""
        step = record.hook_missing(self._daemon.spool.output_dir)
        if step is None or self.finished(newest, 0) or (newest is not None and newest.step > step):
            return
        log.warning(
            "no Python process of the training had the hook that was to hand over checkpoint-%d, and it saved nothing since. %s",
            step,
            HookMissingError.hint,
        )

    def _warn_of_none(self, newest: Checkpoint | None) -> None:
        """Warn of a program that exited with 0 and saved nothing here. Raises CkptsyncError if its Trainer saves elsewhere."""
        spool = self._daemon.spool
        known = record.read(spool.output_dir)
        elsewhere = known.text("elsewhere")
        if elsewhere and known.attempt and known.acknowledged != known.attempt.number:
            raise CkptsyncError(
                f"the training saved in {elsewhere}, not in {spool.output_dir}: nothing of it was uploaded or resumed",
                hint=f"Give --output-dir {elsewhere}, or make the program save in yours.",
            )
        if newest is None and self._daemon.uploader.uploads.durable is None and spool.receipts.newest() is None:
            hint = "its output_dir must be that folder: check --output-dir, --output_dir and --save_strategy"
            log.warning("the training exited with 0 but saved no checkpoint in %s: %s", spool.output_dir, hint)

    def _report_preempted(self, newest: Checkpoint | None) -> int:
        step = newest.step if newest else 0
        if newest and not newest.verdict.resumable:
            raise IntegrityError(
                f"preempted at step {step}, and {newest.name} is durable but {'; '.join(newest.verdict.notes)}",
                hint="The training would start from scratch: train without save_only_model, or start it with --allow-restart.",
            )
        source = self._shutdown.notice.source if self._shutdown.notice else "the training"
        self._daemon.spool.history.record("preempted", step=step, source=source)
        log.warning("preempted at step %d, everything is durable: start the same command again", step)
        return PreemptedError.exit_code

    def _durable(self, newest: Checkpoint | None) -> bool:
        spool = self._daemon.spool
        known = newest is None or f"{newest.name}.{newest.fingerprint}" in spool.receipts
        return known and not spool.pending()

    def raise_undurable(self) -> None:
        """Raise for what is not durable of a finished training, after the time that another watcher may take for it."""
        newest = self.newest()
        self._wait_for_other_watcher(newest)
        self._daemon.raise_outcome()
        self._daemon.raise_gone()
        self._require_durable(newest)

    def _require_durable(self, newest: Checkpoint | None) -> None:
        """Raise where another watcher holds the folder and the newest checkpoint is not durable."""
        if not (self._watch.elsewhere and self._uploads):
            return
        _, incomplete = sources.local_checkpoints(self._daemon.spool.output_dir)
        for path, reason in incomplete:
            if (step_of(path.name) or 0) > (newest.step if newest else 0):
                raise IntegrityError(f"{path.name} is not durable: incomplete: {reason}")
        if not self._durable(newest):
            raise CkptsyncError(
                f"{newest.name if newest else 'the queue'} is not durable: another watcher holds {self._daemon.spool.output_dir}",
                hint="End that one, then start the same command again: `ckptsync status` names it.",
            )

    def _wait_for_other_watcher(self, newest: Checkpoint | None) -> None:
        """If another watcher holds the folder, it writes the receipt."""
        if not (self._watch.elsewhere and self._uploads):
            return
        deadline, asked = self._shutdown.deadline, self._daemon.watch.settings.flush_for
        limit = deadline - time.monotonic() if deadline else RECEIPT_WAIT if asked is None else asked

        def settled() -> bool:
            self._daemon.take_up_verdict()
            return bool(self._daemon.lost or self._daemon.restarted) or self._durable(newest)

        self._watch.finish_elsewhere(settled, limit)

    @property
    def _uploads(self) -> bool:
        return self._daemon.watch.settings.mode == "online"
