"""`install-units` and `uninstall-units`: run ckptsync under systemd."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import sys
from pathlib import Path

import click

import ckptsync
from ckptsync import config, durable, secret_detection
from ckptsync.cli import options
from ckptsync.errors import UsageError
from ckptsync.service import units
from ckptsync.service.units import Instance, Owner, Place


@click.command(
    "install-units",
    epilog="Example: ckptsync install-units llama --output-dir /srv/llama --run-id llama-7 --project llama"
    " -- python train.py --output_dir /srv/llama",
    short_help="Write systemd units that upload and resume a training.",
)
@click.option("--user", is_flag=True, help="Install for your user's service manager instead of the system's; no root needed.")
@click.option("--output-dir", type=click.Path(path_type=Path), required=True, help="The Trainer's output_dir.")
@click.option("--run-id", required=True, help="The training's W&B run id.")
@click.option("--owner", help="User to run as [default: the owner of the output folder, else the user who called sudo].")
@click.option(
    "--working-directory",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Working directory of COMMAND [default: the current folder].",
)
@click.option(
    "--before", metavar="UNIT", help="The training's unit: at shutdown it stops first, and its last checkpoint is uploaded."
)
@click.option("--dry-run", is_flag=True, help="Print the files but write nothing.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@options.common
@click.argument("name")
@click.argument("command", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
def install_units_command(
    name: str,
    command: tuple[str, ...],
    user: bool,
    output_dir: Path,
    run_id: str,
    owner: str | None,
    working_directory: Path | None,
    before: str | None,
    dry_run: bool,
    force: bool,
    project: str | None,
    entity: str | None,
    local: bool,
) -> None:
    """Write and print the unit NAME, its settings file and a drop-in, and the commands to run next.

    Without COMMAND, the unit is ckptsync-watch@NAME, which watches a training that something else starts. With COMMAND, it is
    ckptsync-resume@NAME, which starts the training and resumes it whenever the machine boots.
    """
    if local:
        raise UsageError(
            "--local starts a server only while a command runs; a unit needs a permanent one",
            hint="Set WANDB_BASE_URL in NAME.env.",
        )
    run = config.make_run(run_id, project=project, entity=entity)
    place = _place(user=user)
    output_dir = output_dir.expanduser().absolute()
    who = _owner(owner, output_dir, user=user)
    if not secret_detection.recordable(command):
        raise UsageError(
            "an argument of the command looks like a secret, which must not be in the settings file",
            hint=f"Pass it in an environment variable, set in {place.settings / name}.env with mode 0600.",
        )
    words = [_found(command[0]), *command[1:]] if command else []
    names = {"output-dir": str(output_dir), "run-id": run.run_id, "project": run.project, "entity": run.entity}
    settings: dict[str, str | list[str]] = {key: value for key, value in names.items() if value}
    folder = (working_directory or Path.cwd()).absolute() if words else None
    instance = Instance(
        units.require_name(name),
        "resume" if words else "watch",
        output_dir,
        _program(),
        settings | ({"command": words} if words else {}),
        owner=None if user else who,
        folder=folder,
        before=before,
    )
    units.require_reachable([*_needed(), *map(Path, words[:1]), *([folder] if folder else [])], who)
    files = units.plan(instance, place)
    for file in files:
        click.echo(f"# {file.path}\n{file.text}")
    if not dry_run:
        _write(instance, place, files, who, force=force)
    click.echo("Not written (--dry-run)." if dry_run else "Written.")
    click.echo(f"Run next:\n{_next(instance, place)}")


@click.command(
    "uninstall-units",
    epilog="Example: ckptsync uninstall-units llama",
    short_help="Remove what install-units wrote.",
)
@click.option("--user", is_flag=True, help="Remove from your user's service manager instead of the system's.")
@click.option("--force", is_flag=True, help="Remove even if the unit is still enabled.")
@options.common
@click.argument("name")
def uninstall_units_command(name: str, user: bool, force: bool, project: str | None, entity: str | None, local: bool) -> None:
    """Remove exactly the files that install-units wrote for NAME. Files changed since and all checkpoints are kept."""
    del project, entity, local
    place = _place(user=user)
    systemctl = _systemctl(place)
    enabled = units.enabled(place, units.require_name(name))
    if enabled and not force:
        raise UsageError(f"{enabled[0]} is still enabled", hint=f"Run first: {systemctl} disable --now {enabled[0]}")
    try:
        gone, kept = units.remove(place, name)
    except PermissionError as error:
        raise _no_right(error) from error
    for path in gone:
        click.echo(f"removed {path}")
    for path in kept:
        click.echo(f"kept {path}: changed since, or used by another unit")
    click.echo(f"Run next:\n  {systemctl} daemon-reload")


def _place(*, user: bool) -> Place:
    if not user:
        return units.SYSTEM
    base = config.default_file().parent.parent
    return Place(base / "systemd" / "user", base / "ckptsync", user=True)


def _systemctl(place: Place) -> str:
    return "systemctl --user" if place.user else "systemctl"


def _owner(given: str | None, output_dir: Path, *, user: bool) -> Owner:
    """The user to run as: the owner of the output folder, because only the owner of a file may hard-link it."""
    try:
        if user:
            entry = pwd.getpwuid(os.getuid())
        elif given:
            entry = pwd.getpwnam(given)
        elif output_dir.exists():
            entry = pwd.getpwuid(output_dir.stat().st_uid)
        else:
            entry = pwd.getpwuid(int(os.environ.get("SUDO_UID", os.getuid())))
    except KeyError as error:
        raise UsageError(f"no such user: {error}", hint="Give an existing user as --owner.") from error
    return Owner(entry.pw_name, entry.pw_uid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def _program() -> list[str]:
    """The command of this installation: the script beside the interpreter, which searches no working directory for modules."""
    script = Path(sys.executable).with_name("ckptsync")
    return [str(script)] if script.exists() else [sys.executable, "-m", "ckptsync"]


def _needed() -> list[Path]:
    """What the unit's user must be able to read: the script, the interpreter, the standard library and the packages."""
    return [Path(_program()[0]), Path(sys.executable), Path(os.__file__), Path(ckptsync.__file__), Path(click.__file__)]


def _found(program: str) -> str:
    """The absolute path of a program: a unit's PATH differs from this shell's."""
    path = shutil.which(program)
    if path is None:
        raise UsageError(f"no such program: {program}", hint="Give the training's command as you would run it in this shell.")
    return str(Path(path).absolute())


def _write(instance: Instance, place: Place, files: list[units.File], owner: Owner, *, force: bool) -> None:
    try:
        units.write(instance, place, files, force=force)
        if not instance.output_dir.exists():
            durable.make_folder(instance.output_dir)
            if os.getuid() == 0:
                os.chown(instance.output_dir, owner.uid, -1)
    except PermissionError as error:
        raise _no_right(error) from error


def _no_right(error: PermissionError) -> UsageError:
    return UsageError(f"{error.filename}: {error.strerror}", hint="Run it as root, or with --user for your own units.")


def _next(instance: Instance, place: Place) -> str:
    systemctl, journalctl = _systemctl(place), "journalctl --user" if place.user else "journalctl"
    key = place.settings / "credentials" / "wandb"
    unit = instance.unit.removesuffix(".service")
    lines = [] if key.exists() else [f"install -D -m 600 /dev/stdin {shlex.quote(str(key))}   # paste the W&B key, then Ctrl-D"]
    lines += ["loginctl enable-linger   # keeps it running while you are logged out"] if place.user else []
    lines += [f"{systemctl} daemon-reload", f"{systemctl} enable --now {unit}", f"{systemctl} status {unit}"]
    return "\n".join(f"  {line}" for line in [*lines, f"{journalctl} -fu {unit}"])
