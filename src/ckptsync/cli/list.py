"""`list`: shows the versions of a run in the store."""

from __future__ import annotations

import json

import click

from ckptsync.checkpoint import Version
from ckptsync.cli import options, tables, versions
from ckptsync.restore import sources
from ckptsync.restore.listing import metrics, row
from ckptsync.sizes import size_of
from ckptsync.timestamps import iso
from ckptsync.upload.retention import newest_first


@click.command("list", epilog="Example: ckptsync list 4kx81b2q --json", short_help="List the checkpoint versions of a run.")
@click.argument("run_text", metavar="RUN")
@options.as_json
@options.common
def list_command(run_text: str, as_json: bool, project: str | None, entity: str | None, local: bool) -> None:
    """List the versions of RUN in the store, newest first, including the final model.

    JSON keys: name, version, aliases, step, bytes, files, saved_at (ISO 8601, UTC), state, resumable (null if another
    program uploaded it), kind (checkpoint or model), expires_at (null without a TTL), metrics.
    """
    with versions.found(run_text, project=project, entity=entity, local=local, empty=as_json) as found:
        listed = newest_first(found.versions)
        if found.alias and listed:
            listed = [sources.pick(listed, found.alias, found.run)]
    if as_json:
        click.echo(json.dumps([row(each) for each in listed], indent=1))
    else:
        _print_table(listed)


def _print_table(versions: list[Version]) -> None:
    rows = [
        (
            str(each),
            "" if each.step is None else str(each.step),
            tables.ago(each.saved_at) + " ago",
            size_of(each.bytes),
            _loss(each),
            ", ".join([*each.aliases, *([f"expires {iso(each.expires_at)}"] if each.expires_at else [])]),
        )
        for each in versions
    ]
    tables.show(("VERSION", "STEP", "SAVED", "SIZE", "LOSS", "ALIASES"), rows, right=("STEP", "SIZE", "LOSS"))
    total = sum(each.bytes for each in versions)
    click.echo(f"{len(versions)} versions, {size_of(total)}")


def _loss(version: Version) -> str:
    """The evaluation loss if there is one, else the training loss."""
    known = metrics(version)
    value = known.get("eval_loss", known.get("loss"))
    return "" if value is None else f"{value:.4g}"
