"""`verify`: checks a checkpoint folder, or every byte of a version in the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ckptsync.checkpoint import Verdict
from ckptsync.cli import options, progress
from ckptsync.cli.visible import visible
from ckptsync.errors import IntegrityError, UsageError
from ckptsync.restore import download, fetch, sources
from ckptsync.sizes import size_of
from ckptsync.store.retrying import INTERACTIVE
from ckptsync.upload.spool import Spool
from ckptsync.upload.validation import validate


@click.command(
    "verify",
    epilog="Example: ckptsync verify runs/llama/checkpoint-500",
    short_help="Check that a checkpoint is complete and resumable.",
)
@click.argument("subject", metavar="DIR|RUN[:ALIAS]")
@click.option("--remote", is_flag=True, help="Check a version in the store: read every byte, keep none.")
@click.option(
    "--world-size", type=click.IntRange(min=1), metavar="N", envvar="CKPTSYNC_WORLD_SIZE", help="Number of training processes."
)
@options.as_json
@options.common
def verify_command(
    subject: str,
    remote: bool,
    world_size: int | None,
    as_json: bool,
    project: str | None,
    entity: str | None,
    local: bool,
) -> None:
    """Check that DIR is a complete checkpoint that a training can resume from. If it is incomplete, print why and exit 5.

    JSON keys: path, complete, resumable, layout, step, world_size, files, bytes, problems (file, reason), notes. With --remote:
    name, version, complete, step, files, bytes, problems.
    """
    if remote:
        _verify_version(subject, as_json=as_json, project=project, entity=entity, local=local)
    else:
        _verify_folder(Path(subject), world_size, as_json=as_json)


def _verify_version(run_text: str, *, as_json: bool, project: str | None, entity: str | None, local: bool) -> None:
    from ckptsync.cli import versions

    with versions.found(run_text, project=project, entity=entity, local=local) as found:
        version = download.select(found.versions, found.run, found.alias)[0] if not found.alias else None
        version = version or sources.pick(found.versions, found.alias or "latest", found.run)
        with progress.shown(f"reading {version}") as shown:
            problems = fetch.prove(found.store, version, progress=shown, patience=INTERACTIVE)
    if as_json:
        report = {"name": version.name, "version": version.version, "complete": not problems, "step": version.step}
        report |= {"files": version.files, "bytes": version.bytes}
        report |= {"problems": [{"file": problem.file, "reason": problem.reason} for problem in problems]}
        click.echo(json.dumps(report, indent=1))
        if problems:
            raise click.exceptions.Exit(IntegrityError.exit_code)
        return
    for problem in problems:
        click.echo(visible(str(problem)))
    if problems:
        raise IntegrityError(f"{version} is corrupt: {problems[0]}", hint="Choose another version from `ckptsync list`.")
    click.echo(f"{version}: verified {version.files} files, {size_of(version.bytes)}, against the manifest")


def _verify_folder(directory: Path, world_size: int | None, *, as_json: bool) -> None:
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a folder", hint="Give a checkpoint-N folder, or --remote with a run.")
    path = directory.absolute()
    verdict = validate(path, Spool(path.parent), world_size=world_size, deep=True)
    if as_json:
        click.echo(json.dumps(_verdict_report(path, verdict), indent=1))
    else:
        for problem in verdict.problems:
            click.echo(visible(str(problem)))
        for note in verdict.notes:
            click.echo(visible(f"note: {note}"))
    if not verdict.complete:
        if as_json:
            raise click.exceptions.Exit(IntegrityError.exit_code)
        raise IntegrityError(f"{directory} is incomplete: {verdict.problems[0]}", hint="Resume from another checkpoint.")
    if not as_json:
        resumable = "resumable" if verdict.resumable else "not resumable"
        click.echo(f"{directory}: complete, {resumable}, layout {verdict.layout}, {len(verdict.files)} files")


def _verdict_report(path: Path, verdict: Verdict) -> dict[str, Any]:
    return {
        "path": str(path),
        "complete": verdict.complete,
        "resumable": verdict.resumable,
        "layout": verdict.layout,
        "step": verdict.state.global_step if verdict.state else None,
        "world_size": verdict.world_size,
        "files": len(verdict.files),
        "bytes": sum(file.size for file in verdict.files),
        "problems": [{"file": problem.file, "reason": problem.reason} for problem in verdict.problems],
        "notes": list(verdict.notes),
    }
