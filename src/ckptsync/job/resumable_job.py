"""A training that starts from the newest valid checkpoint, the first time and at every restart."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ckptsync import durable, locks, processes, record, secret_detection, state_folder, state_moves
from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.errors import IntegrityError, LockedError, NotFoundError, StoreError, TransientStoreError
from ckptsync.job import supervisor
from ckptsync.job.heartbeat import Heartbeat
from ckptsync.job.launch import environment, fill
from ckptsync.job.training import StartedTraining, find_running
from ckptsync.job.watch_settings import WatchSettings
from ckptsync.restore import sources, verification
from ckptsync.restore.placement import Placed
from ckptsync.restore.resume import Resume
from ckptsync.service import notify
from ckptsync.store.contract import Progress, Store
from ckptsync.store.retrying import Patience, retry
from ckptsync.store.session import open_store
from ckptsync.trainer import ATTEMPT
from ckptsync.upload import daemon, lineage
from ckptsync.upload.daemon import Reread
from ckptsync.upload.held_folder import require_watched_for
from ckptsync.upload.spool import Spool
from ckptsync.upload.stop import Stop

if TYPE_CHECKING:
    from ckptsync.store.wandb_store import WandbStore

log = logging.getLogger(__name__)

SHORTLY, AT_LENGTH = 20.0, 900.0
"""Seconds to retry an unreachable store: with a valid local checkpoint, and when only the store may have one.

Starting from scratch instead would restart the run at step 0. On a spot machine the network may come up later than ckptsync.
"""


_EXTEND = "To train longer, raise the number of steps in the command and add --extend."


class Terminal(Protocol):
    """Where a job shows progress and messages to the user."""

    def progress(self, what: str) -> AbstractContextManager[Progress]:
        """Show a transfer's progress while the block runs."""

    def say(self, text: str) -> None:
        """Print a line."""


def patience(seconds: float | None, usual: float) -> Patience:
    """How long to retry an unreachable store, in seconds: what the user set, else `usual`."""
    return Patience(first=0.5, longest=15.0, give_up_after=usual if seconds is None else seconds)


class ResumableJob:
    """A training and its checkpoints: finds and places the newest valid one, starts the training from it, and supervises it."""

    def __init__(
        self,
        run: Run,
        connection: Connection | None,
        output_dir: Path,
        *,
        following: WatchSettings,
        patience: Patience,
        flush_for: float | None,
        manager: notify.Manager,
        terminal: Terminal,
        hook: bool,
        extend: bool,
        allow_restart: bool,
        force: bool,
    ) -> None:
        self.run = run
        self.following = following
        self.command: Callable[[Placed | None], tuple[list[str], Path | None]]
        self._connection = connection
        self._output_dir = output_dir
        self._patience = patience
        self._flush_for = flush_for
        self._manager = manager
        self._terminal = terminal
        self._hook = hook
        self._extend = extend
        self._allow_restart = allow_restart
        self._force = force
        self._heartbeat = Heartbeat(connection, run, output_dir, beside=force) if connection else None
        self._exists = False
        self._attempt: str | None = None
        """The id of the newest start of the training by this process."""
        self._chosen = False
        """Whether the user chose an older version to go on from, though the training may have finished since."""
        self._watched: daemon.Daemon | None = None
        # Now: the wandb client of this process drops the training's own variables, WANDB_NAME among them.
        self._stem = following.stem(run, output_dir)

    def run_to_end(self, terms: supervisor.Terms, reread: Reread, first: Callable[[], Placed] | None = None) -> int:
        """Start the training, restart it within the terms, and return the exit code. The first start is from what `first` places.

        Without it, that is as at every restart: from the newest valid checkpoint, or from scratch if there is none.
        """
        firsts = [first] if first else []
        self.following.note(self._output_dir)
        watch = daemon.Watch(
            output_dir=self._output_dir,
            run=self.run,
            environment={**os.environ, **(self._connection.environment() if self._connection else {})},
            stem=self._stem,
            store=self._connection.store if self._connection else None,
            settings=self.following.upload_settings(flush_for=self._flush_for),
            quiet=self.following.quiet_period,
            allow_restart=self._allow_restart,
        )
        watched = self._watched = daemon.Daemon(watch, Stop(), manager=self._manager, reread=reread)
        if self._heartbeat:
            self._heartbeat.guard(watched)
        begin = lambda: self._begin_unless_finished(firsts.pop()()) if firsts else self._begin_again()  # noqa: E731
        return supervisor.Supervisor(watched, begin, terms).run()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only job of this machine in the output folder while the block runs. Raises LockedError, naming the other one.

        Two would find nothing running, place the same checkpoint and both start the training.
        """
        host = f"{socket.gethostname()}: "
        lock = locks.FolderLock(state_folder.make(self._output_dir) / "job", of=self._output_dir, doing="trained in")
        held = True
        try:
            lock.acquire(f"{host}ckptsync, pid {os.getpid()}, run {self.run}")
        except LockedError as error:
            # Several nodes train in one shared folder. The first one holds the run for all of them.
            if host in str(error):
                raise
            self._heartbeat, held = None, False
        try:
            require_watched_for(self.run, self._output_dir)
            with self._heartbeat.ending() if self._heartbeat else contextlib.nullcontext():
                try:
                    yield
                finally:
                    ended = self._watched is not None and self._watched.completed
                    if self._heartbeat and (ended or record.read(self._output_dir).completed):
                        self._heartbeat.undone = False
                    if self._heartbeat and self._attempt:
                        # The wandb client of a training that was killed lives on for some seconds.
                        living = processes.started_with(ATTEMPT, self._attempt)
                        self._heartbeat.trained = not any(processes.is_python(pid) for pid in living)
        finally:
            lock.release()
            if held and (left := state_moves.leave_none_beside(self._output_dir)):
                log.warning("%s is gone; its state, with snapshots or receipts, stays in %s", self._output_dir, left)

    def _hold_run(self) -> None:
        """Keep other machines from training this run at the same time. Raises LockedError if one does."""
        if self._heartbeat and not self._heartbeat.beating:
            if not self._force:
                self._heartbeat.require_alone(self.run, training=True)
            self._heartbeat.start(self.run)

    def pull(self, alias: str | None = None, *, reading: bool = False) -> Placed:
        """Place the newest valid checkpoint of a run that must exist. If W&B is disabled or offline, the newest local one.

        With `reading`, no training follows, so another machine may train the run meanwhile.
        """
        if self._connection is None:
            return Resume(None, self.run, self._output_dir, progress=lambda *_: None).place(alias)
        with open_store(self._connection, self.run) as store:
            self.run = retry(lambda: store.check(self.run), what="the log-in", patience=self._patience)
            self._exists = _exists(store, self.run, self._patience)
            if not self._exists:
                self._require_versions(store)
            if not reading:
                self._hold_run()
            placed = self._place(store, alias)
        if alias:
            self._chosen = alias != "latest"
            # Every start of the training has to go on from there, though a later step stands in the store.
            record.note_rollback(self._output_dir, placed.step if self._chosen else None)
        return placed

    def _require_versions(self, store: Store) -> None:
        """Raise NotFoundError for a run without checkpoints; one that logs nothing to W&B (report_to none) may have some."""
        if not retry(
            lambda: sources.find_versions(store, self.run, self._stem), what="the list of versions", patience=self._patience
        ):
            store.run_state(self.run)
        log.info("run %s is not on the server, but its checkpoints are", self.run)

    def _finished(self, placed: Placed) -> bool:
        """Whether the training has reached its last step and may not go further; reported to the user if so.

        Where the program is known to have been killed after its last step, it is started again for what follows `train()`.
        """
        if not self._chosen and self._completed():
            return True
        left = record.read(self._output_dir).left_undone or bool(self._heartbeat and self._heartbeat.undone)
        undone = self._hook and left
        if placed.state.finished and not undone and not self._extend:
            self._terminal.say(_finished_text(placed))
            return True
        return False

    def _completed(self) -> bool:
        """As `_finished`, for a training that was seen to exit with 0, whatever checkpoints its Trainer kept."""
        known = record.read(self._output_dir)
        elsewhere = self._connection is not None and known.completed_in not in (None, self._connection.store)
        if not known.completed or elsewhere or self._extend:
            return False
        self._terminal.say(
            f"the training is finished: it reached its last step in {self._output_dir} and exited with 0. {_EXTEND}"
        )
        return True

    def _begin_again(self) -> supervisor.Start | None:
        left = find_running(self._output_dir)
        if left:
            complete, _ = sources.local_checkpoints(self._output_dir)
            log.warning("the training is still running (pid %d): watching it instead of starting another", left.members()[0])
            self._hold_run()
            return supervisor.Start(lambda: left, max((each.step for each in complete), default=0))
        if record.read(self._output_dir).completed:
            self._note_attempts_elsewhere()
        if self._completed():
            return None
        # The training that ended may have deleted it.
        durable.make_folder(self._output_dir)
        return self._begin_unless_finished(self._find())

    def _begin_unless_finished(self, placed: Placed | None) -> supervisor.Start | None:
        return None if placed and self._finished(placed) else self._begin(placed)

    def _note_attempts_elsewhere(self) -> None:
        """Write down what other machines started since the training was completed here, if the store says so now."""
        if self._connection is None:
            return
        with contextlib.suppress(StoreError), open_store(self._connection, self.run) as store:
            self.run = retry(lambda: store.check(self.run), what="the log-in", patience=self._patience)
            found = retry(
                lambda: sources.find_versions(store, self.run, self._stem), what="the list of versions", patience=self._patience
            )
            if numbers := [each.attempt for each in found if each.attempt is not None]:
                record.note_highest_attempt(self._output_dir, max(numbers))

    def _find(self) -> Placed | None:
        """Place the newest valid checkpoint; None if the run has none yet.

        If the store stays unreachable, the newest valid local checkpoint is used.
        """
        if self._connection is None:
            try:
                return self._place_here()
            except NotFoundError:
                return None
        try:
            with open_store(self._connection, self.run) as store:
                self.run = retry(lambda: store.check(self.run), what="the log-in", patience=self._patience)
                self._exists = _exists(store, self.run, self._patience)
                self._hold_run()
                try:
                    return self._place(store, None)
                except NotFoundError:
                    if not self._follow_project(store):
                        raise
                    return self._place(store, None)
        except NotFoundError as error:
            log.info("starting from scratch: %s", error)
            return None
        except TransientStoreError as error:
            try:
                placed = self._place_here()
            except (NotFoundError, IntegrityError):
                raise error from None
            log.warning("%s; resuming from the local %s; the store may have a newer checkpoint", error, placed.path)
            return placed

    def _follow_project(self, store: WandbStore) -> bool:
        """Take the project that the program's own wandb.init named on another machine; False where there is no such run."""
        project = store.moved_to(self.run)
        if project is None:
            return False
        log.warning("run %s logs to project %s: continuing it there", self.run, project)
        self.run = store.check(Run(self.run.run_id, project, self.run.entity))
        self._exists = _exists(store, self.run, self._patience)
        return True

    def _place_here(self) -> Placed:
        return Resume(None, self.run, self._output_dir, progress=lambda *_: None, allow_restart=self._allow_restart).place()

    def _place(self, store: WandbStore, alias: str | None) -> Placed:
        with self._terminal.progress(f"checkpoint of {self.run.run_id}") as shown:

            def moved(done: int, total: int) -> None:
                shown(done, total)
                self._manager.moving(done)

            resuming = Resume(
                store,
                self.run,
                self._output_dir,
                progress=moved,
                patience=self._patience,
                allow_restart=self._allow_restart,
                stem=self._stem,
            )
            placed = resuming.place(alias)
        _warn_of_differences(placed)
        if self._exists:
            _warn_of_replay(store, self.run, placed)
        return placed

    def _begin(self, placed: Placed | None) -> supervisor.Start:
        """Write down who the training is from now on, and say how to start it."""
        command, cwd = self.command(placed)
        recordable = secret_detection.recordable(command)
        if not recordable:
            log.warning("the command is not recorded: an argument looks like a secret; give the command again to resume")
        checkpoint = placed.path if placed else None
        words = fill(command, checkpoint)
        record.update(
            self._output_dir,
            run_id=self.run.run_id,
            project=self.run.project,
            entity=self.run.entity,
            command=command if recordable and self.following.record_command else None,
            cwd=str(cwd or Path.cwd()),
            resumed_step=placed.step if placed else None,
            resumed_at=time.time() if placed else None,
            training=None,
            processes=None,
        )
        _note_present(self._output_dir, self.run.run_id)
        version = placed.source.version if placed else None
        attempt = record.begin_attempt(
            self._output_dir,
            resumed_step=placed.step if placed else None,
            resumed_version=str(version) if version else None,
        )
        if self._hook and words == command:
            record.update(self._output_dir, given_hook={"attempt": attempt.number})
        if placed and self._hook and words == command:
            record.update(self._output_dir, handed_over={"attempt": attempt.number, "step": placed.step})
        if placed:
            history = Spool(self._output_dir).history
            history.record("resumed", checkpoint=placed.path.name, step=placed.step, source=str(placed.source))
        environ = environment(
            self.run,
            self._connection,
            self._output_dir,
            checkpoint=checkpoint,
            exists=self._exists,
            attempt=attempt.id,
            hook=self._hook,
        )

        def start() -> StartedTraining:
            self._attempt = attempt.id
            if self._heartbeat:
                self._heartbeat.begin()
            with record.noting_training(self._output_dir) as note:
                if not placed:
                    Spool(self._output_dir).move_out()
                training = StartedTraining(words, environ, cwd=cwd)
                note(training.pid)
            return training

        return supervisor.Start(start, placed.step if placed else 0)


def _exists(store: Store, run: Run, patience: Patience) -> bool:
    """Whether the run is on the server."""
    try:
        retry(lambda: store.run_state(run), what="the look-up of the run", patience=patience)
    except NotFoundError:
        return False
    return True


def _warn_of_replay(store: WandbStore, run: Run, placed: Placed) -> None:
    """Warn of steps that the run has logged already and will log again.

    Rows that name no step as WandbCallback does are a program's own: those after the save, by the clock of the machine that
    wrote both, may come again.
    """
    with contextlib.suppress(StoreError, NotFoundError):
        step, at = store.last_logged(run)
        later = at - placed.source.saved_at if at is not None else 0.0
        if step is not None and step > placed.step:
            log.warning("steps %d to %d will be logged again: the run had reached step %d", placed.step + 1, step, step)
        elif step is None and later > 1.0:
            log.warning("rows that the program logged up to %.0f s after step %d may be logged again", later, placed.step)


def _warn_of_differences(placed: Placed) -> None:
    for difference in verification.differences(placed.source.version) if placed.source.version else []:
        log.warning("%s: the resumed training may not be identical bit for bit", difference)


def _note_present(output_dir: Path, run_id: str) -> None:
    """Keep what is in the folder before the training starts: a machine may have died after a save and before it was pinned."""
    spool = Spool(output_dir, run_id=run_id)
    if newest := lineage.newest_name([*spool.receipts, *spool.pending()]):
        complete, _ = sources.local_checkpoints(output_dir)
        spool.note_scanned(newest, {each.name: each.fingerprint for each in complete})


def _finished_text(placed: Placed) -> str:
    return f"the training is finished: {placed.path} is at step {placed.state.global_step} of {placed.state.max_steps}. {_EXTEND}"
