"""`resume`: restarts the training of an existing run from its newest valid checkpoint."""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from pathlib import Path

import click

from ckptsync import config, connections, record
from ckptsync.cli import options, progress
from ckptsync.cli.visible import visible
from ckptsync.cli.watch_options import Reloadable, reload, watched
from ckptsync.errors import LockedError, UsageError
from ckptsync.job import preemption, resumable_job, supervisor
from ckptsync.job.resumable_job import ResumableJob
from ckptsync.job.training import find_running
from ckptsync.job.watch_settings import WatchSettings
from ckptsync.restore import resume
from ckptsync.restore.placement import Placed
from ckptsync.service import notify
from ckptsync.store import artifact


@click.command(
    "resume",
    cls=Reloadable,
    epilog="Example: ckptsync resume 4kx81b2q --output-dir runs/llama -- python train.py --output_dir runs/llama",
    short_help="Restart a training from the newest valid checkpoint of its run.",
)
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    envvar="CKPTSYNC_OUTPUT_DIR",
    help="The Trainer's output_dir, created if missing [default: the current folder, if a training ran in it].",
)
@click.option("--download-only", is_flag=True, help="Place the checkpoint and print its path, but don't start the training.")
@click.option("--yes", is_flag=True, envvar="CKPTSYNC_YES", help="Run a command from a version's metadata without asking.")
@click.option("--hook/--no-hook", default=True, envvar="CKPTSYNC_HOOK", help="Pass the checkpoint to Trainer.train().")
@click.option("--extend", is_flag=True, help="Resume although the training has reached its last step.")
@click.option(
    "--allow-restart", is_flag=True, envvar="CKPTSYNC_ALLOW_RESTART", help="Accept a training that restarts from scratch."
)
@watched
@options.restartable
@options.forcible
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
    following: WatchSettings,
    max_restarts: int,
    retry_for: float | None,
    force: bool,
    notice: str,
    grace: float | None,
    project: str | None,
    entity: str | None,
    local: bool,
) -> None:
    """Download and verify the newest valid checkpoint of RUN, and restart the training from it as the same W&B run.

    COMMAND defaults to the one in run.json, else the one in the version's metadata, which runs only after confirmation.
    {checkpoint} in COMMAND is replaced by the path; without it a hook passes the checkpoint to Trainer.train().
    """
    manager = notify.claim()
    output_dir = resume.require_output_dir(_output_dir(output_dir), create=True)
    known = record.read(output_dir)
    run, alias = config.parse_run(
        run_text,
        project=project or os.environ.get("WANDB_PROJECT") or known.text("project"),
        entity=entity or (None if local else os.environ.get("WANDB_ENTITY") or known.text("entity")),
    )
    options.require_own(output_dir, run.run_id)
    if find_running(output_dir):
        raise LockedError(
            f"a training is running in {output_dir}", hint="Stop it, or use `ckptsync watch` or `ckptsync run` to watch it."
        )
    with connections.connected_if_online(local=local) as connection:
        options.require_own_project(output_dir, run, connection)
        job = ResumableJob(
            run,
            connection,
            output_dir,
            following=following,
            patience=resumable_job.patience(retry_for, resumable_job.SHORTLY),
            flush_for=retry_for,
            manager=manager,
            terminal=progress.Terminal(),
            hook=hook,
            extend=extend,
            allow_restart=allow_restart,
            force=force,
        )
        job.command = lambda placed: _command(command, output_dir, placed, yes=yes)
        again = reload(lambda following, _: following.upload_settings(flush_for=retry_for))
        terms = supervisor.Terms(preemption.sources(notice), grace, max_restarts)
        with job.alone():
            if download_only:
                placed = job.pull(alias, reading=True)
                version = placed.source.version
                name = str(version) if version else None
                record.begin_attempt(output_dir, resumed_step=placed.step, resumed_version=name)
                # The folder is that run's now: another one must not go on from its checkpoint.
                record.update(output_dir, run_id=job.run.run_id, project=job.run.project, entity=job.run.entity)
                click.echo(str(placed.path))
                return
            raise click.exceptions.Exit(job.run_to_end(terms, again, partial(job.pull, alias)))


def _output_dir(given: Path | None) -> Path:
    if given:
        return given
    if record.path_of(Path()).exists():
        return Path()
    raise UsageError("no output folder given", hint="Give the Trainer's output_dir as --output-dir; it is created if missing.")


def _command(given: tuple[str, ...], output_dir: Path, placed: Placed | None, *, yes: bool) -> tuple[list[str], Path | None]:
    """The training's command and working directory. A command from the store needs the user's confirmation."""
    if given:
        return list(given), None
    known = record.read(output_dir)
    if known.command:
        return known.command, _folder(known.text("cwd"))
    version = placed.source.version if placed else None
    remote = artifact.recorded_command(version) if version else None
    if version is None or remote is None:
        raise UsageError(
            "no command to start the training with", hint="Add it after --: ckptsync resume RUN -- python train.py …"
        )
    click.echo(f"{version.name}:{version.version} was saved by this command:\n  {visible(shlex.join(remote))}", err=True)
    if not yes and not (sys.stdin.isatty() and click.confirm("Run it on this machine?", err=True)):
        raise UsageError(
            "a command from a version's metadata runs only after confirmation", hint="Add --yes, or give the command after --."
        )
    return remote, _folder(version.ours.get("cwd"))


def _folder(text: object) -> Path | None:
    return Path(text) if isinstance(text, str) and Path(text).is_dir() else None
