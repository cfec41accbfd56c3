"""The options that say how an output folder is followed, and how they are read again while it is."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import click

from ckptsync import config, record
from ckptsync.checkpoint import Run
from ckptsync.cli import options
from ckptsync.cli.quantities import Duration, Size
from ckptsync.errors import ConfigurationError, UsageError
from ckptsync.store.retrying import FOR_EVER, Patience
from ckptsync.upload.daemon import Reread, Watch
from ckptsync.upload.policy import Policy
from ckptsync.upload.retention import Retention

log = logging.getLogger(__name__)


_ARGUMENTS = "ckptsync.arguments"


@dataclass(frozen=True, slots=True)
class Following:
    """How to follow: durations in seconds, the limit in bytes."""

    backlog: str | None
    spool_limit: int | None
    quiet_period: float
    stall_timeout: float
    keep_last: int | None
    keep_best: bool
    keep_every: int | None
    name_by: str
    record_command: bool
    nice: bool
    max_upload_rate: int | None

    def policy(self, *, retry_for: float | None = None, once: bool = False) -> Policy:
        """The same for the uploader. `retry_for` is None for a store that is waited for without end."""
        return Policy(
            keep_all=self.backlog == "all" or (once and self.backlog is None),
            limit=self.spool_limit,
            stall=self.stall_timeout,
            patience=FOR_EVER if retry_for is None else Patience(first=0.5, longest=15.0, give_up_after=retry_for),
            keep=Retention(self.keep_last, self.keep_best, self.keep_every),
            only_model=config.log_model() == "end",
            mode=config.upload_mode(),
            yielding=self.nice,
            max_rate=self.max_upload_rate or None,
        )

    def stem(self, run: Run, output_dir: Path) -> str:
        """What the artifact is named after. Raises UsageError where nobody knows the run's name."""
        if self.name_by == "run-id":
            return run.run_id
        name = os.environ.get("WANDB_NAME") or record.read(output_dir).text("run_name")
        if not name:
            raise UsageError("--name-by run-name needs the run's name", hint="Set WANDB_NAME, as for the training.")
        return name

    def note(self, output_dir: Path) -> None:
        """Write down what has to hold for every upload of this folder, whoever starts it, and say what is asked for oddly."""
        keep = Retention(self.keep_last, self.keep_best, self.keep_every)
        record.update(output_dir, record_command=None if self.record_command else False, keep=str(keep) if keep else None)
        wanted = config.log_model()
        if wanted == "false":
            log.warning("WANDB_LOG_MODEL=false: the training asks for no upload, but this command was told to upload, and does")
        elif wanted == "end":
            log.warning("WANDB_LOG_MODEL=end: only the final model is uploaded; what is lost with this machine can't be resumed")


def followed(function: options.Command) -> options.Command:
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


class Rereadable(click.Command):
    """A command whose settings can be read again while it runs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click."""
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


def reread(apply: Callable[[Following, Mapping[str, Any]], Policy]) -> Reread:
    """How the Rereadable command at hand takes its settings anew: `apply` makes the policy of them and of its other options."""
    context = click.get_current_context()

    def again(watch: Watch) -> Watch:
        values = _parsed_again(context)
        following = _taken_from(values)
        return replace(watch, quiet=following.quiet_period, policy=apply(following, values))

    return again


def _taken_from(values: dict[str, Any]) -> Following:
    return Following(**{field.name: values.pop(field.name) for field in fields(Following)})


def _parsed_again(context: click.Context) -> dict[str, Any]:
    """The same command line over the settings file as it is by now. Raises ConfigurationError for what cannot be."""
    arguments = list(context.meta[_ARGUMENTS])
    context.meta[options.REREADING] = True
    try:
        return context.command.make_context(context.info_name, arguments, parent=context.parent).params
    except click.ClickException as error:
        raise ConfigurationError(error.format_message(), hint="Correct the settings file.") from error
