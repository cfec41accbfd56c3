"""`list`: the versions that the store keeps of a run."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click

from ckptsync import config, resume
from ckptsync.checkpoint import Version
from ckptsync.cli import options
from ckptsync.errors import NotFoundError
from ckptsync.retrying import INTERACTIVE, retry


@click.command("list", epilog="Example: ckptsync list 4kx81b2q --json", short_help="The versions of a run's checkpoints.")
@click.argument("run_text", metavar="RUN")
@options.as_json
@options.common
def list_command(run_text: str, as_json: bool, project: str | None, entity: str | None, local: bool) -> None:
    """List the versions that the store keeps of RUN, newest first.

    JSON keys: name, version, aliases, step, bytes, files, saved_at (ISO 8601, UTC), state.
    """
    with options.connected(local=local) as connection:
        run, alias = config.parse_run(run_text, project=project, entity=entity)
        with options.opened_store(connection, run) as store:
            run = retry(lambda: store.check(run), what="the log-in", patience=INTERACTIVE)
            found = retry(lambda: resume.find_versions(store, run), what="the list of versions", patience=INTERACTIVE)
            if not found:
                # Tell a run without checkpoints from one that isn't there.
                retry(lambda: store.run_state(run), what="the look-up of the run", patience=INTERACTIVE)
        if alias and found:
            found = [resume.pick(found, alias, run)]
    rows = [_row(each) for each in found]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif rows:
        _print_table(rows)
    else:
        raise NotFoundError(f"run {run} has no checkpoint yet", hint="`ckptsync watch` uploads them as they are saved.")


def _row(version: Version) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "step": version.step,
        "bytes": version.bytes,
        "files": version.files,
        "saved_at": datetime.fromtimestamp(version.saved_at, UTC).isoformat(timespec="seconds"),
        "state": "COMMITTED",
        "resumable": version.ours.get("resumable"),
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, side in (("VERSION", "left"), ("STEP", "right"), ("SAVED", "left"), ("SIZE", "right"), ("ALIASES", "left")):
        table.add_column(heading, justify="right" if side == "right" else "left", no_wrap=heading != "ALIASES")
    for row in rows:
        step = "" if row["step"] is None else str(row["step"])
        name = f"{row['name']}:{row['version']}"
        table.add_row(name, step, row["saved_at"], decimal(row["bytes"]), ", ".join(row["aliases"]))
    Console(soft_wrap=True).print(table)
