"""Options that commands share, and the run that they select."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ckptsync import config, record
from ckptsync.checkpoint import Run, step_of
from ckptsync.cli import log_output, settings_file
from ckptsync.cli.parameter_types import Duration, Rate
from ckptsync.config import Connection
from ckptsync.errors import UsageError
from ckptsync.job.preemption import CHOICES
from ckptsync.upload.spool import Spool

Command = TypeVar("Command", bound=Callable[..., Any])


def common(function: Command) -> Command:
    """Add --project, --entity, --local, --config, -v and -q."""
    for option in reversed(
        [
            click.option("--project", envvar="CKPTSYNC_PROJECT", help="W&B project [default: WANDB_PROJECT, else huggingface]."),
            click.option(
                "--entity", envvar="CKPTSYNC_ENTITY", help="W&B entity [default: WANDB_ENTITY, else your default entity]."
            ),
            click.option("--local", is_flag=True, envvar="CKPTSYNC_LOCAL", help="Use the embedded server; no account needed."),
            click.option(
                "--config",
                "config_file",
                type=click.Path(path_type=Path, dir_okay=False),
                envvar="CKPTSYNC_CONFIG",
                is_eager=True,
                expose_value=False,
                callback=settings_file.load,
                help="Settings file [default: ~/.config/ckptsync/config.toml].",
            ),
            click.option(
                "-v",
                "--verbose",
                count=True,
                expose_value=False,
                callback=log_output.set_up,
                help="Log debug messages; -vv: also those of other packages.",
            ),
            click.option(
                "-q", "--quiet", is_flag=True, expose_value=False, callback=log_output.quieten, help="Log warnings only."
            ),
        ]
    ):
        function = option(function)
    return function


def preemptible(function: Command) -> Command:
    """Add --notice and --grace."""
    notice = click.option(
        "--notice",
        type=click.Choice(CHOICES),
        default="auto",
        show_default=True,
        envvar="CKPTSYNC_NOTICE",
        help="Source of preemption notices.",
    )
    grace = click.option(
        "--grace",
        type=Duration(),
        envvar="CKPTSYNC_GRACE",
        help="Time from a notice to the end of the machine [default: that of the source].",
    )
    return notice(grace(function))


def require_own(output_dir: Path, run_id: str) -> None:
    """Raise UsageError if the checkpoints in an output folder are those of another run: they would be resumed from, and moved."""
    theirs = record.read(output_dir).text("run_id")
    if theirs in (None, run_id) or not _holds_checkpoints(output_dir):
        return
    raise UsageError(
        f"the checkpoints in {output_dir} are of run {theirs}, not of {run_id}",
        hint=f"Give another --output-dir, or --run-id {theirs} to continue that run, or move its checkpoint-* folders away.",
    )


def require_own_project(output_dir: Path, run: Run, connection: Connection | None) -> None:
    """Raise UsageError if the run's checkpoints in an output folder belong to another project or entity: it would be split.

    The project in which the training was started counts too, since the program's own wandb.init may name another one, and so does
    each one in which something is durable. Where everything durable is in other stores, the folder is free to move to this one.
    """
    known = record.read(output_dir)
    project, entity = known.text("project"), known.text("entity")
    receipts = list(Spool(output_dir, run_id=run.run_id).receipts)
    elsewhere = connection is not None and receipts and all(each.store not in ("", connection.store) for each in receipts)
    if elsewhere or known.text("run_id") not in (None, run.run_id) or not _holds_checkpoints(output_dir):
        return
    homes = [each.artifact.split("/") for each in receipts]
    in_project = project is None or run.project in {project, known.text("started_in"), *(home[1] for home in homes if home[1:])}
    in_entity = entity is None or run.entity in {None, entity, *(home[0] for home in homes)}
    if in_project and in_entity:
        return
    project = project or run.project
    theirs, ours = (project, run.project) if in_entity else (f"{entity}/{project}", f"{run.entity}/{run.project}")
    flags = f"--project {project}" if in_entity else f"--project {project} --entity {entity}"
    raise UsageError(
        f"the checkpoints in {output_dir} are of run {run.run_id} in project {theirs}, not in project {ours}",
        hint=f"Give {flags}, or take a new output folder to train in project {ours}.",
    )


def _holds_checkpoints(output_dir: Path) -> bool:
    return any(step_of(path.name) is not None for path in output_dir.iterdir())


def forcible(function: Command) -> Command:
    """Add --force."""
    return click.option(
        "--force", is_flag=True, envvar="CKPTSYNC_FORCE", help="Go on although ckptsync follows the run on another machine."
    )(function)


def restartable(function: Command) -> Command:
    """Add --max-restarts and --retry-for."""
    restarts = click.option(
        "--max-restarts",
        type=click.IntRange(min=0),
        metavar="N",
        default=0,
        show_default=True,
        envvar="CKPTSYNC_MAX_RESTARTS",
        help="Restart a failed training up to this many times; stop after 3 failures in a row without a new checkpoint.",
    )
    patience = click.option(
        "--retry-for",
        type=Duration(),
        envvar="CKPTSYNC_RETRY_FOR",
        help="Give up on an unreachable store after this long, at the start [default: 20s; 15m for `run` without a valid local"
        " checkpoint] and at the end [default: never].",
    )
    return restarts(patience(function))


def retained(function: Command) -> Command:
    """Add --keep-last, --keep-best and --keep-every."""
    last = click.option(
        "--keep-last", type=click.IntRange(min=1), envvar="CKPTSYNC_KEEP_LAST", help="Keep the newest N versions.", metavar="N"
    )
    best = click.option("--keep-best", is_flag=True, envvar="CKPTSYNC_KEEP_BEST", help="Keep the Trainer's best checkpoint.")
    every = click.option(
        "--keep-every",
        type=click.IntRange(min=1),
        envvar="CKPTSYNC_KEEP_EVERY",
        help="Keep the versions at multiples of STEPS.",
        metavar="STEPS",
    )
    return last(best(every(function)))


def max_upload_rate(function: Command) -> Command:
    """Add --max-upload-rate."""
    return click.option(
        "--max-upload-rate",
        type=Rate(),
        envvar="CKPTSYNC_MAX_UPLOAD_RATE",
        help="Limit uploads to this many bytes per second, for example 20M; 0: no limit. Ignored after a preemption notice.",
    )(function)


def as_json(function: Command) -> Command:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON with stable keys.")(function)


def run_of(output_dir: Path, *, run_id: str | None, project: str | None, entity: str | None, local: bool) -> Run:
    """The run of the training in an output folder, from flags, WANDB_*, run.json and the training's own wandb folder."""
    known = record.read(output_dir)
    project = project or os.environ.get("WANDB_PROJECT") or known.text("project")
    entity = entity or (None if local else os.environ.get("WANDB_ENTITY") or known.text("entity"))
    found = run_id or os.environ.get("WANDB_RUN_ID") or known.text("run_id") or config.newest_wandb_run(output_dir)
    if not found:
        raise click.UsageError(f"no run id for {output_dir}: give --run-id, or set WANDB_RUN_ID as for the training")
    return config.make_run(found, project=project, entity=entity)
