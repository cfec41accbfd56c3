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
@click.option("--model", is_flag=True, help="The final model (model-<run_id>) rather than a checkpoint.")
@click.option("--alias", "aliases", multiple=True, help="An alias for it there, such as production; may be given again.")
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
    """Link a version of RUN into REGISTRY/COLLECTION, with ORGANIZATION/ before it where you are in several.

    The version itself stays where it is, and `prune` never deletes it while it is linked. JSON keys: name, version, target,
    linked_as, aliases.
    """
    parts = target.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(f"{target!r} is not REGISTRY/COLLECTION", hint="For example: model/llama-chat")
    for alias in aliases:
        if not alias or "/" in alias or ":" in alias:
            raise UsageError(f"{alias!r} cannot be an alias", hint="Leave out / and :.")
    with versions.found(run_text, project=project, entity=entity, local=local) as found:
        version = download.select(found.versions, found.run, found.alias, model=model)[0]
        linked = retry(lambda: found.store.link(version, target, aliases), what="the link to the registry", patience=INTERACTIVE)
    if as_json:
        report = {"name": version.name, "version": version.version, "target": target}
        click.echo(json.dumps(report | {"linked_as": linked, "aliases": list(aliases)}, indent=1))
    else:
        click.echo(f"{version} is now {linked}" + (f" ({', '.join(aliases)})" if aliases else ""))
