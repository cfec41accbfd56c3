"""`promote`: links a version to the registry."""

from __future__ import annotations

import json

import click

from ckptsync.cli import options, versions
from ckptsync.errors import UsageError
from ckptsync.restore import download
from ckptsync.store.retrying import INTERACTIVE, retry


@click.command(
    "promote",
    epilog="Example: ckptsync promote 4kx81b2q:best model/llama-chat --alias staging",
    short_help="Link a version to the registry.",
)
@click.argument("run_text", metavar="RUN[:ALIAS]")
@click.argument("target", metavar="REGISTRY/COLLECTION")
@click.option("--model", is_flag=True, help="Link the final model (model-<run_id>) instead of a checkpoint.")
@click.option("--alias", "aliases", multiple=True, help="Alias in the registry, for example production; repeatable.")
@options.as_json
@options.common
def promote_command(
    run_text: str,
    target: str,
    model: bool,
    aliases: tuple[str, ...],
    as_json: bool,
    project: str | None,
    entity: str | None,
    local: bool,
) -> None:
    """Link a version of RUN to REGISTRY/COLLECTION (ORGANIZATION/REGISTRY/COLLECTION if you are in several).

    The version itself is not moved, and `prune` never deletes a linked version. JSON keys: name, version, target,
    linked_as, aliases.
    """
    parts = target.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(f"{target!r} is not REGISTRY/COLLECTION", hint="For example: model/llama-chat")
    for alias in aliases:
        if not alias or "/" in alias or ":" in alias:
            raise UsageError(f"{alias!r} cannot be an alias", hint="An alias contains no / and no :.")
    with versions.found(run_text, project=project, entity=entity, local=local) as found:
        version = download.select(found.versions, found.run, found.alias, model=model)[0]
        linked = retry(lambda: found.store.link(version, target, aliases), what="the link to the registry", patience=INTERACTIVE)
    if as_json:
        report = {"name": version.name, "version": version.version, "target": target}
        click.echo(json.dumps(report | {"linked_as": linked, "aliases": list(aliases)}, indent=1))
    else:
        click.echo(f"linked {version} as {linked}" + (f" ({', '.join(aliases)})" if aliases else ""))
