"""`prune`: deletes the versions of a run that no rule keeps."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from ckptsync.checkpoint import Version
from ckptsync.cli import options, tables, versions
from ckptsync.cli.parameter_types import Duration
from ckptsync.errors import UsageError
from ckptsync.sizes import size_of
from ckptsync.store.retrying import INTERACTIVE, retry
from ckptsync.timestamps import iso
from ckptsync.upload import retention
from ckptsync.upload.retention import Choice, Retention


@click.command(
    "prune",
    epilog="Example: ckptsync prune 4kx81b2q --keep-last 3 --keep-best --keep-every 1000 --dry-run",
    short_help="Delete versions that no retention rule keeps.",
)
@click.argument("run_text", metavar="RUN")
@options.retained
@click.option(
    "--ttl", type=Duration(), envvar="CKPTSYNC_TTL", help="Don't delete now: let the store delete them after this long."
)
@click.option("--dry-run", is_flag=True, help="Show the plan but delete nothing.")
@click.option("--yes", is_flag=True, envvar="CKPTSYNC_YES", help="Delete without asking.")
@options.as_json
@options.common
def prune_command(
    run_text: str,
    keep_last: int | None,
    keep_best: bool,
    keep_every: int | None,
    ttl: float | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    project: str | None,
    entity: str | None,
    local: bool,
) -> None:
    """Show which versions of RUN to delete and why the others are kept, then delete after confirmation.

    Always kept: the newest two verified versions, the one that `latest` names, every version with an alias of yours or a
    link to a registry, the final model, and what ckptsync didn't upload. JSON keys: run, policy, freed_bytes, and versions with
    name, version, step, bytes, kept, reasons, deleted, expires_at.
    """
    policy = Retention(keep_last, keep_best, keep_every)
    if not policy:
        raise UsageError("no retention rule given", hint="Give --keep-last N, --keep-best or --keep-every STEPS.")
    with versions.found(run_text, project=project, entity=entity, local=local) as found:
        now = time.time()
        choices = retry(lambda: retention.plan(found.store, found.versions, policy, now), what="the plan", patience=INTERACTIVE)
        going = [each for each in choices if not each.kept]
        if not as_json:
            _show_plan(choices, ttl)
        agreed = bool(going) and not dry_run and _agreed(going, yes=yes, ask=not as_json)
        at = None if ttl is None else now + ttl
        gone = (
            retry(lambda: retention.sweep(found.store, choices, at=at), what="the deletion", patience=INTERACTIVE)
            if agreed
            else []
        )
    if as_json:
        click.echo(json.dumps(_report(str(found.run), policy, choices, gone, at), indent=1))
    elif agreed:
        what = "will be deleted by the store" if ttl else "deleted"
        spared = (
            f"; {len(going) - len(gone)} kept, because they were aliased or linked meanwhile" if len(gone) < len(going) else ""
        )
        click.echo(f"{len(gone)} versions {what}, {size_of(_bytes(gone))}{spared}")
    elif going:
        click.echo("nothing deleted", err=True)


def _agreed(going: list[Choice], *, yes: bool, ask: bool) -> bool:
    if yes:
        return True
    if not (ask and sys.stdin.isatty()):
        raise UsageError("versions are deleted only after confirmation", hint="Add --yes, or --dry-run to see only the plan.")
    return click.confirm(f"Delete these {len(going)} versions?", err=True)


def _show_plan(choices: list[Choice], ttl: float | None) -> None:
    verb = f"delete in {tables.age(ttl)}" if ttl else "delete"
    rows = [
        (
            str(each.version),
            "" if each.version.step is None else str(each.version.step),
            size_of(each.version.bytes),
            "keep" if each.kept else verb,
            ", ".join(each.reasons),
        )
        for each in choices
    ]
    tables.show(("VERSION", "STEP", "SIZE", "PLAN", "REASONS"), rows, right=("STEP", "SIZE"))
    going = [each.version for each in choices if not each.kept]
    freed = size_of(_bytes(going))
    click.echo(f"{len(choices) - len(going)} to keep, {len(going)} to delete: {freed}, less files shared with kept versions")


def _bytes(versions: Sequence[Version]) -> int:
    return sum(each.bytes for each in versions)


def _report(run: str, policy: Retention, choices: Sequence[Choice], gone: Sequence[Version], at: float | None) -> dict[str, Any]:
    return {
        "run": run,
        "policy": {"keep_last": policy.last, "keep_best": policy.best, "keep_every": policy.every},
        "freed_bytes": _bytes(gone) if at is None else 0,
        "versions": [
            {
                "name": each.version.name,
                "version": each.version.version,
                "step": each.version.step,
                "bytes": each.version.bytes,
                "kept": each.kept,
                "reasons": list(each.reasons),
                "deleted": at is None and each.version in gone,
                "expires_at": iso(at) if at is not None and each.version in gone else None,
            }
            for each in choices
        ],
    }
