"""The options that say how an output folder is followed, and how they are read again while it is."""

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
from ckptsync.upload.policy import Policy

_ARGUMENTS = "ckptsync.arguments"


def watched(function: options.Command) -> options.Command:
    """Add the options that arrive as the one argument `following`."""

    @functools.wraps(function)
    def gathered(**given: Any) -> Any:
        return function(following=_taken_from(given), **given)

    for add in reversed(
        [
            click.option(
                "--backlog",
                type=click.Choice(["newest", "all"]),
                envvar="CKPTSYNC_BACKLOG",
                help="When behind: the newest next, dropping what it supersedes, or all in order [default: newest].",
            ),
            click.option(
                "--spool-limit", type=Size(), envvar="CKPTSYNC_SPOOL_LIMIT", help="Let the oldest go when more waits: 200G."
            ),
            click.option(
                "--quiet-period",
                type=Duration(),
                default="3s",
                show_default=True,
                envvar="CKPTSYNC_QUIET_PERIOD",
                help="How long nothing may change before a save counts as over.",
            ),
            click.option(
                "--stall-timeout",
                type=Duration(),
                default="5m",
                show_default=True,
                envvar="CKPTSYNC_STALL_TIMEOUT",
                help="How long an upload may make no progress before it is ended and tried again.",
            ),
            options.retained,
            click.option(
                "--name-by",
                type=click.Choice(["run-id", "run-name"]),
                default="run-id",
                show_default=True,
                envvar="CKPTSYNC_NAME_BY",
                help="Call the artifact checkpoint-<run_id> or checkpoint-<run_name> (WANDB_NAME).",
            ),
            click.option(
                "--record-command/--no-record-command",
                default=True,
                envvar="CKPTSYNC_RECORD_COMMAND",
                help="Keep the training's command in each version's metadata, for a resume elsewhere.",
            ),
            click.option(
                "--nice/--no-nice",
                default=True,
                envvar="CKPTSYNC_NICE",
                help="Let uploads take only the processor and disk time that the training leaves.",
            ),
            options.max_upload_rate,
        ]
    ):
        gathered = add(gathered)
    return gathered  # type: ignore[return-value]


class Reloadable(click.Command):
    """A command whose settings can be read again while it runs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click."""
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


def reload(apply: Callable[[WatchSettings, Mapping[str, Any]], Policy]) -> Reread:
    """How the Reloadable command at hand takes its settings anew: `apply` makes the policy of them and of its other options."""
    context = click.get_current_context()

    def again(watch: Watch) -> Watch:
        values = _parsed_again(context)
        following = _taken_from(values)
        return replace(watch, quiet=following.quiet_period, policy=apply(following, values))

    return again


def _taken_from(values: dict[str, Any]) -> WatchSettings:
    return WatchSettings(**{field.name: values.pop(field.name) for field in fields(WatchSettings)})


def _parsed_again(context: click.Context) -> dict[str, Any]:
    """The same command line over the settings file as it is by now. Raises ConfigurationError for what cannot be."""
    arguments = list(context.meta[_ARGUMENTS])
    context.meta[log_output.RELOADING] = True
    try:
        return context.command.make_context(context.info_name, arguments, parent=context.parent).params
    except click.ClickException as error:
        raise ConfigurationError(error.format_message(), hint="Correct the settings file.") from error
