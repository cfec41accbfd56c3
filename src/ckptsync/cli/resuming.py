"""`run` and `resume`: bring a checkpoint into its place and stay beside the training that goes on from it."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import sys
import time
from pathlib import Path

import click

from ckptsync import artifact, config, daemon, record, resume
from ckptsync.checkpoint import Run
from ckptsync.cli import options, progress
from ckptsync.config import Connection
from ckptsync.errors import NotFoundError, UsageError
from ckptsync.launch import Training, environment, fill
from ckptsync.resume import Placed, Resume
from ckptsync.retrying import INTERACTIVE, retry
from ckptsync.store import Store
from ckptsync.supervise import Supervisor

log = logging.getLogger(__name__)


@click.command(
    "resume",
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
    project: str | None,
    entity: str | None,
    local: bool,
) -> None:
    """Pull the newest valid checkpoint of RUN, verify it, and restart the training with resume="must".

    The command is the one after --, else the one that run.json recorded, else the version's own, which runs only after a yes.
    {checkpoint} in it becomes the path; without it a hook hands the checkpoint to Trainer.train().
    """
    output_dir = resume.require_output_dir(_output_dir(output_dir), create=True)
    known = record.read(output_dir)
    run, alias = config.parse_run(
        run_text,
        project=project or os.environ.get("WANDB_PROJECT") or known.text("project"),
        entity=entity or (None if local else os.environ.get("WANDB_ENTITY") or known.text("entity")),
    )
    with options.connected(local=local) as connection:
        with options.opened_store(connection, run) as store:
            run = retry(lambda: store.check(run), what="the log-in", patience=INTERACTIVE)
            retry(lambda: store.run_state(run), what="the look-up of the run", patience=INTERACTIVE)
            with progress.shown(f"checkpoint of {run.run_id}") as shown:
                placed = Resume(store, run, output_dir, progress=shown).place(alias)
        _tell_differences(placed)
        if download_only:
            click.echo(str(placed.path))
            return
        if placed.state.finished and not extend:
            _tell_finished(placed)
            return
        chosen, cwd = _command(command, output_dir, placed, yes=yes)
        raise click.exceptions.Exit(
            _train(run, connection, output_dir, placed, chosen, cwd, exists=True, hook=hook, allow_restart=allow_restart)
        )


def _output_dir(given: Path | None) -> Path:
    if given:
        return given
    if record.path_of(Path()).exists():
        return Path()
    raise UsageError("which output folder?", hint="Give --output-dir, the Trainer's output_dir; it is made where it is missing.")


def _command(given: tuple[str, ...], output_dir: Path, placed: Placed, *, yes: bool) -> tuple[list[str], Path | None]:
    """The training's command and the folder to start it in; what only the network told needs a yes."""
    if given:
        return list(given), None
    known = record.read(output_dir)
    if known.command:
        return known.command, _folder(known.text("cwd"))
    version = placed.source.version
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


def _train(
    run: Run,
    connection: Connection,
    output_dir: Path,
    placed: Placed | None,
    command: list[str],
    cwd: Path | None,
    *,
    exists: bool,
    hook: bool,
    allow_restart: bool,
) -> int:
    """Start the command as this run, from this checkpoint, and stay beside it to the end."""
    recordable = record.recordable(command)
    if not recordable:
        log.warning("the command is not recorded: an argument looks like a secret; give it again for the next resume")
    resumed = {"resumed_step": placed.step, "resumed_at": time.time()} if placed else {"resumed_step": None, "resumed_at": None}
    record.update(
        output_dir,
        run_id=run.run_id,
        project=run.project,
        entity=run.entity,
        command=command if recordable else None,
        cwd=str(cwd or Path.cwd()),
        **resumed,
    )
    checkpoint = placed.path if placed else None
    environ = environment(run, connection, output_dir, checkpoint=checkpoint, exists=exists, hook=hook)
    words = fill(command, checkpoint)
    watched = daemon.Daemon(
        daemon.Watch(
            output_dir=output_dir,
            run=run,
            environment={**os.environ, **connection.environment()},
            stem=run.run_id,
            allow_restart=allow_restart,
        ),
        daemon.Stop(),
    )
    if placed:
        watched.spool.record("resumed", checkpoint=placed.path.name, step=placed.step, source=str(placed.source))
    return Supervisor(watched).run(Training(words, environ, cwd=cwd))


def _exists(store: Store, run: Run) -> bool:
    """Whether the run is on the server."""
    try:
        retry(lambda: store.run_state(run), what="the look-up of the run", patience=INTERACTIVE)
    except NotFoundError:
        return False
    return True


def _place_if_any(store: Store, run: Run, output_dir: Path) -> Placed | None:
    """The newest valid checkpoint in its place, or None where the run has none yet."""
    try:
        with progress.shown(f"checkpoint of {run.run_id}") as shown:
            return Resume(store, run, output_dir, progress=shown).place()
    except NotFoundError as error:
        log.info("starting fresh: %s", error)
        return None


def _tell_differences(placed: Placed) -> None:
    for difference in resume.differences(placed.source.version) if placed.source.version else []:
        log.warning("%s: a resumed training may not go on bit by bit", difference)


def _tell_finished(placed: Placed) -> None:
    click.echo(
        f"the training is finished: {placed.path} is at step {placed.state.global_step} of {placed.state.max_steps}."
        " To train longer, raise the steps in the command and add --extend.",
        err=True,
    )


@click.command(
    "run",
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
@options.common
@click.argument("command", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def run_command(
    command: tuple[str, ...],
    run_id: str | None,
    output_dir: Path,
    hook: bool,
    extend: bool,
    allow_restart: bool,
    project: str | None,
    entity: str | None,
    local: bool,
) -> None:
    """Run COMMAND as one W&B run, however often the machine is taken away: start the same line again and it goes on.

    Resumes the newest valid checkpoint, here or in the store; starts fresh when there is none. A finished training is not
    started again.
    """
    output_dir = resume.require_output_dir(output_dir, create=True)
    known = record.read(output_dir)
    run = config.make_run(
        run_id or os.environ.get("WANDB_RUN_ID") or known.text("run_id") or secrets.token_hex(4),
        project=project or os.environ.get("WANDB_PROJECT") or known.text("project"),
        entity=entity or (None if local else os.environ.get("WANDB_ENTITY") or known.text("entity")),
    )
    record.update(output_dir, run_id=run.run_id, project=run.project)
    with options.connected(local=local) as connection:
        with options.opened_store(connection, run) as store:
            run = retry(lambda: store.check(run), what="the log-in", patience=INTERACTIVE)
            exists = _exists(store, run)
            placed = _place_if_any(store, run, output_dir)
        if placed:
            _tell_differences(placed)
        if placed and placed.state.finished and not extend:
            _tell_finished(placed)
            return
        raise click.exceptions.Exit(
            _train(
                run, connection, output_dir, placed, list(command), None, exists=exists, hook=hook, allow_restart=allow_restart
            )
        )
