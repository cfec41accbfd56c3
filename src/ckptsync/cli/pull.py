"""`pull`: downloads one version and verifies it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ckptsync.cli import options, progress, versions
from ckptsync.restore import download
from ckptsync.store.retrying import INTERACTIVE


@click.command(
    "pull",
    epilog="Example: ckptsync pull 4kx81b2q:best models/best",
    short_help="Download one version and verify every byte.",
)
@click.argument("run_text", metavar="RUN[:ALIAS]")
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@click.option("--model", is_flag=True, help="Download the final model (model-<run_id>) instead of a checkpoint.")
@options.as_json
@options.common
def pull_command(
    run_text: str, destination: Path, model: bool, as_json: bool, project: str | None, entity: str | None, local: bool
) -> None:
    """Download a version of RUN into DEST, a new or empty folder, and verify every byte.

    ALIAS defaults to the newest valid version. An interrupted pull continues where it stopped. from_pretrained(DEST) loads it.
    JSON keys: path, name, version, step, bytes, files.
    """
    download.require_free(destination)
    with versions.found(run_text, project=project, entity=entity, local=local) as found:
        wanted = download.select(found.versions, found.run, found.alias, model=model)
        with progress.shown(f"{wanted[0]}") as shown:
            pulled = download.pull(found.store, wanted, destination, progress=shown, patience=INTERACTIVE)
    version = pulled.version
    if as_json:
        report = {"path": str(pulled.path), "name": version.name, "version": version.version, "step": pulled.step}
        click.echo(json.dumps(report | {"bytes": version.bytes, "files": version.files}, indent=1))
    else:
        click.echo(str(pulled.path))
