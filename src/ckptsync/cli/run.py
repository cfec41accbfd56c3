"""`run`: starts a training, or resumes it if there is a checkpoint."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

import click

from ckptsync import config, connections, record
from ckptsync.checkpoint import Run
from ckptsync.cli import options, progress
from ckptsync.cli.watch_options import Reloadable, reload, watched
from ckptsync.job import preemption, resumable_job, supervisor
from ckptsync.job.resumable_job import ResumableJob
from ckptsync.job.watch_settings import WatchSettings
from ckptsync.restore import resume, sources
from ckptsync.service import notify

log = logging.getLogger(__name__)


@click.command(
    "run",
    cls=Reloadable,
    epilog="Example: ckptsync run --run-id llama-7 --output-dir runs/llama -- python train.py --output_dir runs/llama",
    short_help="Start a training, or resume it from its newest valid checkpoint.",
)
@click.option("--run-id", envvar="CKPTSYNC_RUN_ID", help="The W&B run id [default: WANDB_RUN_ID, else run.json, else a new one].")
@click.option(
    "--output-dir", type=click.Path(path_type=Path), envvar="CKPTSYNC_OUTPUT_DIR", required=True, help="The Trainer's output_dir."
)
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
@click.argument("command", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def run_command(
    command: tuple[str, ...],
    run_id: str | None,
    output_dir: Path,
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
    """Run COMMAND as one W&B run. After a preemption or a crash, run the same line again to continue.

    Resumes from the newest valid checkpoint, local or in the store; starts from scratch if there is none. A finished training
    is not started again. The settings file can give output-dir, run-id and command = ["python", …].
    """
    manager = notify.claim()
    output_dir = resume.require_output_dir(output_dir, create=True)
    known = record.read(output_dir)
    run = config.make_run(
        run_id or os.environ.get("WANDB_RUN_ID") or known.text("run_id") or secrets.token_hex(4),
        project=project or os.environ.get("WANDB_PROJECT") or known.text("project"),
        entity=entity or (None if local else os.environ.get("WANDB_ENTITY") or known.text("entity")),
    )
    options.require_own(output_dir, run.run_id)
    if not (run_id or os.environ.get("WANDB_RUN_ID")):
        log.warning("no run id was given: to continue this training on another machine, add --run-id %s", run.run_id)
    with connections.connected_if_online(local=local) as connection:
        options.require_own_project(output_dir, run, connection)
        usual = resumable_job.SHORTLY if _resumable_here(output_dir) else resumable_job.AT_LENGTH
        job = ResumableJob(
            run,
            connection,
            output_dir,
            following=following,
            patience=resumable_job.patience(retry_for, usual),
            flush_for=retry_for,
            manager=manager,
            terminal=progress.Terminal(),
            hook=hook,
            extend=extend,
            allow_restart=allow_restart,
            force=force,
        )
        job.command = lambda _: ([str(word) for word in command], None)
        again = reload(lambda following, _: following.upload_settings(flush_for=retry_for))
        terms = supervisor.Terms(preemption.sources(notice), grace, max_restarts)
        with job.alone():
            record.update(output_dir, run_id=run.run_id, project=run.project, started_in=_started_in(known, run))
            raise click.exceptions.Exit(job.run_to_end(terms, again))


def _started_in(known: record.Record, run: Run) -> str:
    """The project that the first start of the training named. A later one may name that in which the run is since."""
    first, now = known.text("started_in"), known.text("project")
    return first if first and known.text("run_id") == run.run_id and run.project in (first, now) else run.project


def _resumable_here(output_dir: Path) -> bool:
    complete, _ = sources.local_checkpoints(output_dir)
    return any(each.verdict.resumable for each in complete)
