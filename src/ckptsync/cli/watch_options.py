"""The options that say how an output folder is watched, and how they are reloaded on SIGHUP."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import click

from ckptsync.cli import log_output, options
from ckptsync.cli.parameter_types import Duration, Size
from ckptsync.errors import ConfigurationError
from ckptsync.job.watch_settings import WatchSettings
from ckptsync.upload.daemon import Reread, Watch
from ckptsync.upload.settings import UploadSettings

_ARGUMENTS = "ckptsync.arguments"


def watched(function: options.Command) -> options.Command:
    """Add the options of WatchSettings, which arrive as one argument, `following`."""

    @functools.wraps(function)
    def gathered(**given: Any) -> Any:
        return function(following=_taken_from(given), **given)

    for add in reversed(
        [
            click.option(
                "--backlog",
                type=click.Choice(["newest", "all"]),
                envvar="CKPTSYNC_BACKLOG",
                help="If uploads fall behind: upload the newest next and drop older ones, or all in order [default: newest].",
            ),
            click.option(
                "--spool-limit",
                type=Size(),
                envvar="CKPTSYNC_SPOOL_LIMIT",
                help="Drop the oldest queued checkpoints beyond this size, for example 200G.",
            ),
            click.option(
                "--quiet-period",
                type=Duration(),
                default="3s",
                show_default=True,
                envvar="CKPTSYNC_QUIET_PERIOD",
                help="How long a checkpoint must be unchanged before it counts as saved.",
            ),
            click.option(
                "--stall-timeout",
                type=Duration(positive=True),
                default="5m",
                show_default=True,
                envvar="CKPTSYNC_STALL_TIMEOUT",
                help="Kill and retry an upload that makes no progress for this long.",
            ),
            options.retained,
            click.option(
                "--name-by",
                type=click.Choice(["run-id", "run-name"]),
                default="run-id",
                show_default=True,
                envvar="CKPTSYNC_NAME_BY",
                help="Name the artifact checkpoint-<run_id> or checkpoint-<run_name> (WANDB_NAME).",
            ),
            click.option(
                "--record-command/--no-record-command",
                default=True,
                envvar="CKPTSYNC_RECORD_COMMAND",
                help="Record the training's command in each version's metadata, for `resume` on another machine.",
            ),
            click.option(
                "--nice/--no-nice",
                default=True,
                envvar="CKPTSYNC_NICE",
                help="Run uploads at low CPU and disk priority.",
            ),
            options.max_upload_rate,
        ]
    ):
        gathered = add(gathered)
    return gathered  # type: ignore[return-value]


class Reloadable(click.Command):
    """A command whose settings can be reloaded while it runs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click."""
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


def reload(apply: Callable[[WatchSettings, Mapping[str, Any]], UploadSettings]) -> Reread:
    """A function that reloads the current command's settings. `apply` makes those of uploads from them and the options."""
    context = click.get_current_context()

    def again(watch: Watch) -> Watch:
        values = _parsed_again(context)
        following = _taken_from(values)
        return replace(watch, quiet=following.quiet_period, settings=apply(following, values))

    return again


def _taken_from(values: dict[str, Any]) -> WatchSettings:
    return WatchSettings(**{field.name: values.pop(field.name) for field in fields(WatchSettings)})


def _parsed_again(context: click.Context) -> dict[str, Any]:
    """The command line parsed over the settings file as it is now. Raises ConfigurationError for an invalid setting."""
    arguments = list(context.meta[_ARGUMENTS])
    context.meta[log_output.RELOADING] = True
    try:
        return context.command.make_context(context.info_name, arguments, parent=context.parent).params
    except click.ClickException as error:
        raise ConfigurationError(error.format_message(), hint="Correct the settings file.") from error
