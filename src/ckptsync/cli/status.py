"""`status`: the last durable step, and what is at risk. Reads only this machine, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ckptsync import record
from ckptsync.checkpoint import step_of
from ckptsync.cli import options, tables
from ckptsync.cli.parameter_types import Duration
from ckptsync.cli.visible import visible
from ckptsync.errors import UsageError
from ckptsync.job import overview
from ckptsync.restore import resume
from ckptsync.sizes import size_of


@click.command(
    "status",
    epilog="Example: ckptsync status runs/llama --max-age 30m",
    short_help="Show the last durable step and the work at risk.",
)
@click.argument("output_dirs", metavar="[OUTPUT_DIR]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--max-age",
    type=Duration(),
    envvar="CKPTSYNC_MAX_AGE",
    help="Exit 1 if work has been at risk for longer than this: 90 (seconds), 30m, 12h.",
)
@options.as_json
@options.common
def status_command(
    output_dirs: tuple[Path, ...], max_age: float | None, as_json: bool, project: str | None, entity: str | None, local: bool
) -> None:
    """Show the last durable step, its age and the upload queue of each OUTPUT_DIR (default: the current folder).

    JSON keys: output_dir, run, project, entity, watcher, last_durable_step, last_durable_at, last_durable_version,
    newest_local_step, finished, at_risk_seconds, at_risk_steps (saved locally, not durable), upload_bytes_per_second,
    pending, parked, torn, copied (counts), the names in pending_names, parked_reasons, torn_names; stored_bytes (in the
    store, from this folder), spool_bytes (queued), keep (the policy), growth_bytes_per_day (of training, without a policy).
    """
    del project, entity, local
    folders = [resume.require_output_dir(each, create=False) for each in output_dirs or (Path(),)]
    if max_age is not None:
        for each in folders:
            _require_training(each)
    reports = [overview.report(each) for each in folders]
    if as_json:
        click.echo(json.dumps(reports[0] if len(reports) == 1 else reports, indent=1))
    else:
        click.echo(visible("\n\n".join(_words(each) for each in reports), lines=True))
    if max_age is not None and any((each["at_risk_seconds"] or 0) > max_age for each in reports):
        raise click.exceptions.Exit(1)


def _require_training(output_dir: Path) -> None:
    """Raise UsageError for a folder without a trace of a training: an alarm on it would never ring."""
    if record.path_of(output_dir).exists() or any(step_of(path.name) is not None for path in output_dir.iterdir()):
        return
    raise UsageError(
        f"{output_dir} has neither checkpoints nor a run.json of ckptsync",
        hint="Give the Trainer's output_dir, once the training has started.",
    )


def _words(report: dict[str, Any]) -> str:
    lines = [f"{report['output_dir']}  run {report['run'] or 'unknown'}"]
    if report["last_durable_step"] is None:
        lines.append("  durable   nothing yet")
    else:
        saved = f"saved at {report['last_durable_at']}, {report['last_durable_version']}"
        lines.append(f"  durable   step {report['last_durable_step']}, {saved}")
    lines.append(f"  at risk   {_at_risk(report)}")
    lines.append(f"  local     newest step {report['newest_local_step']}" if report["newest_local_step"] else "  local     none")
    lines.append(f"  queued    {report['pending']}, parked {report['parked']}, incomplete {report['torn']}")
    if report["upload_bytes_per_second"]:
        lines.append(f"  uploads   {size_of(report['upload_bytes_per_second'])}/s (last upload)")
    lines.append(f"  watcher   {report['watcher'] or 'none; start one with `ckptsync watch`'}")
    if report["copied"]:
        lines.append(f"  copied    {report['copied']} of these, because this file system has neither reflinks nor hard links")
    lines.append(f"  storage   {_stored(report)}")
    lines += [f"  parked    {name}: {reason}" for name, reason in report["parked_reasons"].items()]
    return "\n".join(lines)


def _at_risk(report: dict[str, Any]) -> str:
    if report["finished"]:
        return "nothing: the training is finished"
    seconds, steps = report["at_risk_seconds"], report["at_risk_steps"]
    work = "all work so far" if seconds is None else f"the last {tables.age(seconds)} of work"
    return f"{work}, of which {steps} {'step is' if steps == 1 else 'steps are'} saved locally" if steps else work


def _stored(report: dict[str, Any]) -> str:
    stored = f"{size_of(report['stored_bytes'])} in the store"
    if report["keep"]:
        return f"{stored}, retention: {report['keep']}"
    growth = report["growth_bytes_per_day"]
    if growth is None:
        return stored
    return f"{stored}, growing by {size_of(growth)} per day of training; limit it with --keep-last or `ckptsync prune`"
