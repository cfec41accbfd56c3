"""The options that every command has, and what they come to: a run, a connection, a log."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ckptsync import config, record
from ckptsync.checkpoint import Run
from ckptsync.cli import journal
from ckptsync.cli.quantities import Duration, Rate
from ckptsync.config import Connection
from ckptsync.job.preemption import CHOICES

if TYPE_CHECKING:
    from ckptsync.store.wandb_store import WandbStore

_SETTINGS = "ckptsync.settings"

REREADING = "ckptsync.rereading"
"""Set in a context's meta while its command line is parsed again: the log stays as it is."""

Command = TypeVar("Command", bound=Callable[..., Any])


def common(function: Command) -> Command:
    """Add --project, --entity, --local, --config, -v and -q."""
    for option in reversed(
        [
            click.option("--project", envvar="CKPTSYNC_PROJECT", help="W&B project; else WANDB_PROJECT, else huggingface."),
            click.option("--entity", envvar="CKPTSYNC_ENTITY", help="W&B entity; else WANDB_ENTITY, else your default one."),
            click.option("--local", is_flag=True, envvar="CKPTSYNC_LOCAL", help="Use the embedded server: no account needed."),
            click.option(
                "--config",
                "config_file",
                type=click.Path(path_type=Path, dir_okay=False),
                envvar="CKPTSYNC_CONFIG",
                is_eager=True,
                expose_value=False,
                callback=_load_settings,
                help="Settings file [default: ~/.config/ckptsync/config.toml].",
            ),
            click.option("-v", "--verbose", count=True, expose_value=False, callback=_set_up_log, help="Tell more."),
            click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_quieten, help="Tell warnings only."),
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
        help="Whose word to follow that this machine is about to be taken away.",
    )
    grace = click.option(
        "--grace", type=Duration(), envvar="CKPTSYNC_GRACE", help="Time between that word and the end, where it is not the usual."
    )
    return notice(grace(function))


def restartable(function: Command) -> Command:
    """Add --max-restarts and --retry-for."""
    restarts = click.option(
        "--max-restarts",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        envvar="CKPTSYNC_MAX_RESTARTS",
        help="Start the training again after so many failures; never after 3 in a row without a new checkpoint.",
    )
    patience = click.option(
        "--retry-for",
        type=Duration(),
        envvar="CKPTSYNC_RETRY_FOR",
        help="Wait so long for a store that is away [default: 20s; 15m to `run` where no valid checkpoint is here].",
    )
    return restarts(patience(function))


def retained(function: Command) -> Command:
    """Add --keep-last, --keep-best and --keep-every."""
    last = click.option(
        "--keep-last", type=click.IntRange(min=1), envvar="CKPTSYNC_KEEP_LAST", help="Keep the newest so many versions."
    )
    best = click.option("--keep-best", is_flag=True, envvar="CKPTSYNC_KEEP_BEST", help="Keep the Trainer's best checkpoint.")
    every = click.option(
        "--keep-every", type=click.IntRange(min=1), envvar="CKPTSYNC_KEEP_EVERY", help="Keep those of every so many steps."
    )
    return last(best(every(function)))


def max_upload_rate(function: Command) -> Command:
    """Add --max-upload-rate."""
    return click.option(
        "--max-upload-rate",
        type=Rate(),
        envvar="CKPTSYNC_MAX_UPLOAD_RATE",
        help="Bytes a second that uploads may take: 20M. Lifted once the machine is about to go; 0 is no limit.",
    )(function)


def as_json(function: Command) -> Command:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, with keys that stay.")(function)


def settings_file(context: click.Context) -> tuple[Path, bool]:
    """Where the settings of a command come from, and whether a file has to be there since somebody named it."""
    named: Path | None = context.meta[_SETTINGS]
    return named or config.default_file(), named is not None


def _load_settings(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    """Put the settings file below the flags and CKPTSYNC_* variables, which is click's own order."""
    context.meta[_SETTINGS] = value
    path, named = settings_file(context)
    settings = config.load_file(path, required=named)
    _warn_of_unknown(context, path, settings)
    context.default_map = {**settings, **(context.default_map or {})}


def _warn_of_unknown(context: click.Context, path: Path, settings: Mapping[str, object]) -> None:
    """Name the settings that no command has: most likely a slip of the pen, and without a word it would have no effect."""
    unknown = set(settings) - _names(context.command)
    group = context.parent.command if context.parent else None
    if not unknown or not isinstance(group, click.Group) or context.parent is None:
        return
    for name in group.list_commands(context.parent):
        command = group.get_command(context.parent, name)
        unknown -= _names(command) if command else set()
    for name in sorted(unknown):
        click.echo(f"ckptsync: {path}: no command has a setting {name.replace('_', '-')!r}; it is ignored", err=True)


def _names(command: click.Command) -> set[str]:
    return {parameter.name for parameter in command.params if parameter.name}


def _set_up_log(context: click.Context, _parameter: click.Parameter, value: int) -> int:
    if context.meta.get(REREADING):
        return value
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    handler.setFormatter(journal.Formatter() if journal.reads(sys.stderr) else plain)
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("ckptsync").setLevel(logging.DEBUG if value else logging.INFO)
    if value:
        logging.getLogger().setLevel(logging.DEBUG if value > 1 else logging.INFO)
    return value


def _quieten(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    if context.meta.get(REREADING):
        return value
    if value or os.environ.get("WANDB_QUIET", "").lower() == "true" or os.environ.get("WANDB_SILENT", "").lower() == "true":
        logging.getLogger("ckptsync").setLevel(logging.WARNING)
    return value


@contextlib.contextmanager
def connected(*, local: bool) -> Iterator[Connection]:
    """The store to talk to for as long as the block lasts: the embedded server with --local, else what the environment names."""
    if not local:
        yield config.connection()
        return
    from ckptsync.server.local import local_server

    with local_server() as server:
        # The entity of another server means nothing to this one.
        os.environ.pop("WANDB_ENTITY", None)
        yield Connection(server.url, server.api_key)


@contextlib.contextmanager
def connected_if_online(*, local: bool) -> Iterator[Connection | None]:
    """The same; None, said once, where WANDB_MODE or WANDB_DISABLED keeps everything here. Then no key is needed."""
    mode = config.upload_mode()
    if mode == "online":
        with connected(local=local) as connection:
            yield connection
        return
    what = "nothing is uploaded" if mode == "disabled" else "checkpoints wait in .ckptsync/spool for a start that is online"
    logging.getLogger(__name__).warning("W&B is %s by WANDB_MODE or WANDB_DISABLED: %s", mode, what)
    yield None


@contextlib.contextmanager
def opened_store(connection: Connection, run: Run) -> Iterator[WandbStore]:
    """W&B in this process, with the client's own files in a folder that goes away with the block."""
    import tempfile

    from ckptsync.store.wandb_store import WandbStore

    with _environment_kept(), tempfile.TemporaryDirectory(prefix="ckptsync-", ignore_cleanup_errors=True) as private:
        store = WandbStore(connection, run, Path(private))
        try:
            yield store
        finally:
            store.close()


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """What the client sets in this process is none of the training's, which is started with this environment later."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def run_of(output_dir: Path, *, run_id: str | None, project: str | None, entity: str | None, local: bool) -> Run:
    """The run of the training in an output folder, from flags, WANDB_*, run.json and the training's own wandb folder."""
    known = record.read(output_dir)
    project = project or os.environ.get("WANDB_PROJECT") or known.text("project")
    entity = entity or (None if local else os.environ.get("WANDB_ENTITY") or known.text("entity"))
    found = run_id or os.environ.get("WANDB_RUN_ID") or known.text("run_id") or config.newest_wandb_run(output_dir)
    if not found:
        raise click.UsageError(f"no run id for {output_dir}: give --run-id, or set WANDB_RUN_ID as for the training")
    return config.make_run(found, project=project, entity=entity)
