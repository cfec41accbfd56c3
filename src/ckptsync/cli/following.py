"""The options that say how an output folder is followed, and how they are read again while it is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import click
from click.core import ParameterSource

from ckptsync import config
from ckptsync.cli import options
from ckptsync.cli.quantities import Duration, Size
from ckptsync.daemon import Reread, Watch
from ckptsync.errors import ConfigurationError
from ckptsync.retrying import FOR_EVER, Patience
from ckptsync.uploader import Policy


@dataclass(frozen=True, slots=True)
class Following:
    """How to follow: durations in seconds, the limit in bytes."""

    backlog: str | None
    spool_limit: int | None
    quiet_period: float
    stall_timeout: float

    def policy(self, *, retry_for: float | None = None, once: bool = False) -> Policy:
        """The same for the uploader. `retry_for` is None for a store that is waited for without end."""
        return Policy(
            keep_all=self.backlog == "all" or (once and self.backlog is None),
            limit=self.spool_limit,
            stall=self.stall_timeout,
            patience=FOR_EVER if retry_for is None else Patience(first=0.5, longest=15.0, give_up_after=retry_for),
        )


def followed(function: options.Command) -> options.Command:
    """Add --backlog, --spool-limit, --quiet-period and --stall-timeout, which arrive as the one argument `following`."""

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
        ]
    ):
        gathered = add(gathered)
    return gathered  # type: ignore[return-value]


def reread(apply: Callable[[Following, Mapping[str, Any]], Policy]) -> Reread:
    """How the command at hand takes its settings anew: `apply` makes the policy of them and of its other options."""
    context = click.get_current_context()

    def again(watch: Watch) -> Watch:
        values = _read_again(context)
        following = _taken_from(values)
        return replace(watch, quiet=following.quiet_period, policy=apply(following, values))

    return again


def _taken_from(values: dict[str, Any]) -> Following:
    return Following(**{field.name: values.pop(field.name) for field in fields(Following)})


def _read_again(context: click.Context) -> dict[str, Any]:
    """Every option as the settings file has it by now; what a flag or a variable said stands above it, as before.

    Raises ConfigurationError for a file or a value that cannot be.
    """
    path, named = options.settings_file(context)
    context.default_map = config.load_file(path, required=named)
    try:
        return {
            parameter.name: _value(context, parameter)
            for parameter in context.command.params
            if parameter.name and parameter.expose_value
        }
    except click.ClickException as error:
        raise ConfigurationError(error.format_message(), hint="Correct the settings file.") from error


def _value(context: click.Context, parameter: click.Parameter) -> Any:
    assert parameter.name  # noqa: S101 - asked before
    if context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
        return context.params[parameter.name]
    value, _ = parameter.consume_value(context, {})
    return parameter.process_value(context, value)
