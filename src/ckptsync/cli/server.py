"""`server`: runs the embedded W&B-compatible server in the foreground."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from ckptsync.cli import options
from ckptsync.errors import ConfigurationError


@click.command(
    "server", epilog="Example: ckptsync server --data-dir /srv/ckptsync", short_help="Run the embedded W&B-compatible server."
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    envvar="CKPTSYNC_DATA_DIR",
    help="Folder for the database, files and key [default: ~/.local/share/ckptsync/server].",
)
@click.option("--host", default="127.0.0.1", show_default=True, envvar="CKPTSYNC_HOST", help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8787,
    show_default=True,
    envvar="CKPTSYNC_PORT",
    help="Port to listen on; 0: any free port.",
)
@options.common
def server_command(data_dir: Path | None, host: str, port: int, project: str | None, entity: str | None, local: bool) -> None:
    """Serve W&B's API for runs and artifacts to the unmodified wandb client; data is kept in SQLite and plain files.

    Listens on loopback by default. The first start generates an API key in the file api-key of the data folder.
    """
    del project, entity, local
    for module in ("starlette", "uvicorn", "graphql"):
        if importlib.util.find_spec(module) is None:
            raise ConfigurationError(f"the server needs {module}, which is not installed", hint="pip install 'ckptsync[server]'")
    from ckptsync.server.app import serve
    from ckptsync.server.local import default_data_dir

    folder = data_dir or default_data_dir()
    click.echo(f"the API key is in {folder / 'api-key'}; set WANDB_BASE_URL and WANDB_API_KEY to use this server", err=True)
    serve(folder, host=host, port=port)
