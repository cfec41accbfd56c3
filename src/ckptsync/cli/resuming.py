"""`run` and `resume`: bring a checkpoint into its place and stay beside the training that goes on from it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from ckptsync import config, processes, record, secret_detection
from ckptsync.checkpoint import Run
from ckptsync.cli import options, progress
from ckptsync.cli.following import Following, Rereadable, followed, reread
from ckptsync.config import Connection
from ckptsync.errors import IntegrityError, LockedError, NotFoundError, StoreError, TransientStoreError, UsageError
from ckptsync.job import preemption, supervisor
from ckptsync.job.launch import environment, fill
from ckptsync.job.training import StartedTraining, find_running
from ckptsync.restore import resume, sources, verification
from ckptsync.restore.resume import Placed, Resume
from ckptsync.service import notify
from ckptsync.store import artifact
from ckptsync.store.contract import Store
from ckptsync.store.retrying import INTERACTIVE, Patience, retry
from ckptsync.store.wandb_store import WandbStore
from ckptsync.upload import daemon
from ckptsync.upload.spool import Spool
from ckptsync.upload.stop import Stop

log = logging.getLogger(__name__)

SHORTLY, AT_LENGTH = 20.0, 900.0
"""Seconds to wait for a store that is away: where a checkpoint is here to go on from, and where the store alone may have one.

To start fresh instead would be a second beginning of the same run. On a spot machine the network may come up after us.
"""


@click.command(
    "resume",
    cls=Rereadable,
    epilog="Example: ckptsync resume 4kx81b2q --output-dir runs/llama -- python train.py --output_dir runs/llama",
    short_help="Pull the newest valid checkpoint and restart the training.",
)
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    envvar="CKPTSYNC_OUTPUT_DIR",
    help="The Trainer's output_dir, made where it is missing [default: this folder, if a training ran in it].",
)
@click.option("--download-only", is_flag=True, help="Place the checkpoint, print its path, and start nothing.")
@click.option("--yes", is_flag=True, envvar="CKPTSYNC_YES", help="Run a command that only the version's metadata names.")
@click.option("--hook/--no-hook", default=True, envvar="CKPTSYNC_HOOK", help="Hand the checkpoint to Trainer.train().")
@click.option("--extend", is_flag=True, help="Go on although the training reached its last step.")
@click.option("--allow-restart", is_flag=True, envvar="CKPTSYNC_ALLOW_RESTART", help="Accept a training that starts over.")
@followed
@options.restartable
@options.preemptible
@options.common
@click.argument("run_text", metavar="RUN")
@click.argument("command", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
def resume_command(
    run_text: str,
    command: tuple[str, ...],
    output_dir: Path | None,
    download_only: bool,
    yes: bool,
    hook: bool,
    extend: bool,
    allow_restart: bool,
    following: Following,
    max_restarts: int,
    retry_for: float | None,
    notice: str,
    grace: float | None,
    project: str | None,
    entity: str | None,
    local: bool,
) -> None:
    """Pull the newest valid checkpoint of RUN, verify it, and restart the training with resume="must".

    The command is the one after --, else the one that run.json recorded, else the version's own, which runs only after a yes.
    {checkpoint} in it becomes the path; without it a hook hands the checkpoint to Trainer.train().
    """
    manager = notify.claim()
    output_dir = resume.require_output_dir(_output_dir(output_dir), create=True)
    known = record.read(output_dir)
    run, alias = config.parse_run(
        run_text,
        project=project or os.environ.get("WANDB_PROJECT") or known.text("project"),
        entity=entity or (None if local else os.environ.get("WANDB_ENTITY") or known.text("entity")),
    )
    if find_running(output_dir):
        raise LockedError(
            f"a training is running in {output_dir}", hint="Stop it first, or follow it with `ckptsync watch` or `ckptsync run`."
        )
    with options.connected_if_online(local=local) as connection:
        start = Start(run, connection, output_dir, hook=hook, extend=extend, allow_restart=allow_restart)
        start.manager, start.following = manager, following
        start.patience = _patience(retry_for, SHORTLY)
        placed = start.pull(alias)
        if download_only:
            click.echo(str(placed.path))
            return
        if start.finished(placed):
            return
        start.command = lambda placed: _command(command, output_dir, placed, yes=yes)
        code = start.see_through(supervisor.Terms(preemption.sources(notice), grace, max_restarts), placed)
        raise click.exceptions.Exit(code)


def _output_dir(given: Path | None) -> Path:
    if given:
        return given
    if record.path_of(Path()).exists():
        return Path()
    raise UsageError("which output folder?", hint="Give --output-dir, the Trainer's output_dir; it is made where it is missing.")


def _command(given: tuple[str, ...], output_dir: Path, placed: Placed | None, *, yes: bool) -> tuple[list[str], Path | None]:
    """The training's command and the folder to start it in; what only the network told needs a yes."""
    if given:
        return list(given), None
    known = record.read(output_dir)
    if known.command:
        return known.command, _folder(known.text("cwd"))
    version = placed.source.version if placed else None
    remote = artifact.recorded_command(version) if version else None
    if version is None or remote is None:
        raise UsageError(
            "no command to start the training with", hint="Give it after --: ckptsync resume RUN -- python train.py …"
        )
    click.echo(f"{version.name}:{version.version} was saved by this command:\n  {shlex.join(remote)}", err=True)
    if not yes and not (sys.stdin.isatty() and click.confirm("Run it here?", err=True)):
        raise UsageError(
            "a command that came with a version runs only after a yes", hint="Add --yes, or give the command after --."
        )
    return remote, _folder(version.ours.get("cwd"))


def _folder(text: object) -> Path | None:
    return Path(text) if isinstance(text, str) and Path(text).is_dir() else None


class Start:
    """What `run` and `resume` start, again and again: how its checkpoint is found, and what it is started with."""

    def __init__(
        self, run: Run, connection: Connection | None, output_dir: Path, *, hook: bool, extend: bool, allow_restart: bool
    ) -> None:
        self.run = run
        self.patience = INTERACTIVE
        self.manager = notify.NOBODY
        self.following: Following
        self.command: Callable[[Placed | None], tuple[list[str], Path | None]]
        self._connection = connection
        self._output_dir = output_dir
        self._hook = hook
        self._extend = extend
        self._allow_restart = allow_restart
        self._exists = False

    def see_through(self, terms: supervisor.Terms, placed: Placed | None = None) -> int:
        """Start, and stay beside the training until it has ended for good. `placed` is what the first start goes on from."""
        waiting = [placed] if placed else []
        self.following.note(self._output_dir)
        watch = daemon.Watch(
            output_dir=self._output_dir,
            run=self.run,
            environment={**os.environ, **(self._connection.environment() if self._connection else {})},
            stem=self.following.stem(self.run, self._output_dir),
            policy=self.following.policy(),
            quiet=self.following.quiet_period,
            allow_restart=self._allow_restart,
        )
        again = reread(lambda following, _: following.policy())
        watched = daemon.Daemon(watch, Stop(), manager=self.manager, reread=again)
        begin = lambda: self._begin(waiting.pop()) if waiting else self._begin_again()  # noqa: E731
        return supervisor.Supervisor(watched, begin, terms).run()

    def pull(self, alias: str | None = None) -> Placed:
        """The newest valid checkpoint of a run that must exist, in its place. Where W&B is off, the newest that is here."""
        if self._connection is None:
            return Resume(None, self.run, self._output_dir, progress=lambda *_: None).place(alias)
        with options.opened_store(self._connection, self.run) as store:
            self.run = retry(lambda: store.check(self.run), what="the log-in", patience=self.patience)
            retry(lambda: store.run_state(self.run), what="the look-up of the run", patience=self.patience)
            self._exists = True
            return self._place(store, alias)

    def finished(self, placed: Placed) -> bool:
        """Whether nothing is left to train; then that is told."""
        if placed.state.finished and not self._extend:
            _tell_finished(placed)
            return True
        return False

    def _begin_again(self) -> supervisor.Start | None:
        left = find_running(self._output_dir)
        if left:
            whole, _ = sources.local_checkpoints(self._output_dir)
            log.warning("the training still runs (pid %d): following it, no other one is started", left.members()[0])
            return supervisor.Start(lambda: left, max((each.step for each in whole), default=0))
        placed = self._find()
        return None if placed and self.finished(placed) else self._begin(placed)

    def _find(self) -> Placed | None:
        """The newest valid checkpoint in its place, None where the run has none yet.

        A store that is away is waited for. But where a valid checkpoint is here, not for long: the training goes on from that.
        """
        if self._connection is None:
            return self._find_here()
        try:
            with options.opened_store(self._connection, self.run) as store:
                self.run = retry(lambda: store.check(self.run), what="the log-in", patience=self.patience)
                self._exists = _exists(store, self.run, self.patience)
                return self._place(store, None)
        except NotFoundError as error:
            log.info("starting fresh: %s", error)
            return None
        except TransientStoreError as error:
            placed = self._find_here()
            if placed is None:
                raise
            log.warning("%s; going on from %s, which is here; whether the store has a newer one is not known", error, placed.path)
            return placed

    def _find_here(self) -> Placed | None:
        try:
            return Resume(None, self.run, self._output_dir, progress=lambda *_: None, allow_restart=self._allow_restart).place()
        except (NotFoundError, IntegrityError):
            return None

    def _place(self, store: WandbStore, alias: str | None) -> Placed:
        with progress.shown(f"checkpoint of {self.run.run_id}") as shown:

            def moved(done: int, total: int) -> None:
                shown(done, total)
                self.manager.moving(done)

            resuming = Resume(
                store, self.run, self._output_dir, progress=moved, patience=self.patience, allow_restart=self._allow_restart
            )
            placed = resuming.place(alias)
        _tell_differences(placed)
        if self._exists:
            _tell_replay(store, self.run, placed)
        return placed

    def _begin(self, placed: Placed | None) -> supervisor.Start:
        """Write down who the training is from now on, and say how to start it."""
        command, cwd = self.command(placed)
        recordable = secret_detection.recordable(command)
        if not recordable:
            log.warning("the command is not recorded: an argument looks like a secret; give it again for the next resume")
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
        attempt = record.begin_attempt(
            self._output_dir,
            resumed_step=placed.step if placed else None,
            resumed_version=str(placed.source.version) if placed and placed.source.version else None,
            after=(placed.source.version.attempt if placed and placed.source.version else None) or 0,
        )
        if placed:
            Spool(self._output_dir).record("resumed", checkpoint=placed.path.name, step=placed.step, source=str(placed.source))
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
            training = StartedTraining(words, environ, cwd=cwd)
            record.update(self._output_dir, training=processes.identity(training.pid))
            return training

        return supervisor.Start(start, placed.step if placed else 0)


def _patience(seconds: float | None, usual: float) -> Patience:
    return Patience(first=0.5, longest=15.0, give_up_after=usual if seconds is None else seconds)


def _exists(store: Store, run: Run, patience: Patience) -> bool:
    """Whether the run is on the server."""
    try:
        retry(lambda: store.run_state(run), what="the look-up of the run", patience=patience)
    except NotFoundError:
        return False
    return True


def _tell_replay(store: WandbStore, run: Run, placed: Placed) -> None:
    """Say which steps the run has logged already and will log again."""
    with contextlib.suppress(StoreError, NotFoundError):
        logged = store.logged_step(run)
        if logged is not None and logged > placed.step:
            log.warning("steps %d to %d will be logged again: the run had come to step %d", placed.step + 1, logged, logged)


def _tell_differences(placed: Placed) -> None:
    for difference in verification.differences(placed.source.version) if placed.source.version else []:
        log.warning("%s: a resumed training may not go on bit by bit", difference)


def _tell_finished(placed: Placed) -> None:
    click.echo(
        f"the training is finished: {placed.path} is at step {placed.state.global_step} of {placed.state.max_steps}."
        " To train longer, raise the steps in the command and add --extend.",
        err=True,
    )


@click.command(
    "run",
    cls=Rereadable,
    epilog="Example: ckptsync run --run-id llama-7 --output-dir runs/llama -- python train.py --output_dir runs/llama",
    short_help="Start a training, or resume it where there is something to resume.",
)
@click.option("--run-id", envvar="CKPTSYNC_RUN_ID", help="The W&B run id; else WANDB_RUN_ID, else run.json, else a new one.")
@click.option(
    "--output-dir", type=click.Path(path_type=Path), envvar="CKPTSYNC_OUTPUT_DIR", required=True, help="The Trainer's output_dir."
)
@click.option("--hook/--no-hook", default=True, envvar="CKPTSYNC_HOOK", help="Hand the checkpoint to Trainer.train().")
@click.option("--extend", is_flag=True, help="Go on although the training reached its last step.")
@click.option("--allow-restart", is_flag=True, envvar="CKPTSYNC_ALLOW_RESTART", help="Accept a training that starts over.")
@followed
@options.restartable
@options.preemptible
@options.common
@click.argument("command", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def run_command(
    command: tuple[str, ...],
    run_id: str | None,
    output_dir: Path,
    hook: bool,
    extend: bool,
    allow_restart: bool,
    following: Following,
    max_restarts: int,
    retry_for: float | None,
    notice: str,
    grace: float | None,
    project: str | None,
    entity: str | None,
    local: bool,
) -> None:
    """Run COMMAND as one W&B run, however often the machine is taken away: start the same line again and it goes on.

    Resumes the newest valid checkpoint, here or in the store; starts fresh when there is none. A finished training is not
    started again. OUTPUT_DIR, run id and COMMAND may stand in the settings file: output-dir, run-id, command = ["python", …].
    """
    manager = notify.claim()
    output_dir = resume.require_output_dir(output_dir, create=True)
    known = record.read(output_dir)
    run = config.make_run(
        run_id or os.environ.get("WANDB_RUN_ID") or known.text("run_id") or secrets.token_hex(4),
        project=project or os.environ.get("WANDB_PROJECT") or known.text("project"),
        entity=entity or (None if local else os.environ.get("WANDB_ENTITY") or known.text("entity")),
    )
    record.update(output_dir, run_id=run.run_id, project=run.project)
    with options.connected_if_online(local=local) as connection:
        start = Start(run, connection, output_dir, hook=hook, extend=extend, allow_restart=allow_restart)
        start.manager, start.following = manager, following
        start.patience = _patience(retry_for, SHORTLY if _resumable_here(output_dir) else AT_LENGTH)
        start.command = lambda _: ([str(word) for word in command], None)
        raise click.exceptions.Exit(start.see_through(supervisor.Terms(preemption.sources(notice), grace, max_restarts)))


def _resumable_here(output_dir: Path) -> bool:
    whole, _ = sources.local_checkpoints(output_dir, record.read(output_dir).world_size)
    return any(each.verdict.resumable for each in whole)
