"""The settings file, whose values come after the flags and the CKPTSYNC_* variables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from ckptsync import config

_SETTINGS = "ckptsync.settings"


def path_of(context: click.Context) -> tuple[Path, bool]:
    """The settings file of a command, and whether it must exist because the user named it."""
    named: Path | None = context.meta[_SETTINGS]
    return named or config.default_file(), named is not None


def load(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    """Make the settings file the source of defaults, which click ranks below flags and CKPTSYNC_* variables."""
    context.meta[_SETTINGS] = value
    path, named = path_of(context)
    settings = config.load_file(path, required=named)
    _warn_of_unknown(context, path, settings)
    context.default_map = {**settings, **(context.default_map or {})}


def _warn_of_unknown(context: click.Context, path: Path, settings: Mapping[str, object]) -> None:
    """Warn of settings that no command has: probably a typo, which would otherwise be ignored silently."""
    unknown = set(settings) - _names(context.command)
    group = context.parent.command if context.parent else None
    if not unknown or not isinstance(group, click.Group) or context.parent is None:
        return
    for name in group.list_commands(context.parent):
        command = group.get_command(context.parent, name)
        unknown -= _names(command) if command else set()
    for name in sorted(unknown):
        click.echo(f"ckptsync: {path}: ignoring unknown setting {name.replace('_', '-')!r}", err=True)


def _names(command: click.Command) -> set[str]:
    return {parameter.name for parameter in command.params if parameter.name}
