"""What is installed for an instance: the unit template, a drop-in with what depends on this machine, and a settings file.

An instance is a name; its settings file is NAME.toml in the service manager's configuration folder. Writes nothing.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptsync.errors import UsageError

KINDS = ("watch", "resume")
"""The sidecar of a training, and the whole job."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PLAIN = re.compile(r"[A-Za-z0-9_./@:+=,-]+")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service manager reads unit files and configuration (%E in a unit). `user`: a user's manager, not the system's."""

    units: Path
    settings: Path
    user: bool = False


SYSTEM = Place(Path("/etc/systemd/system"), Path("/etc/ckptsync"))


@dataclass(frozen=True, slots=True)
class Owner:
    """The user who owns the output folder and whom the unit runs as."""

    name: str
    uid: int
    gids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Instance:
    """What to install: `program` is the command line of this ckptsync, `settings` the content of the settings file.

    `folder` is the training's working directory. `before` names the unit of a training that the watcher must outlive.
    """

    name: str
    kind: str
    output_dir: Path
    program: Sequence[str]
    settings: Mapping[str, str | Sequence[str]]
    owner: Owner | None = None
    folder: Path | None = None
    before: str | None = None

    @property
    def unit(self) -> str:
        """The unit's name for systemctl."""
        return f"ckptsync-{self.kind}@{self.name}.service"


@dataclass(frozen=True, slots=True)
class File:
    """One file to write."""

    path: Path
    text: str

    @property
    def digest(self) -> str:
        """The SHA-256 of its content."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def templates() -> Path:
    """The folder of the unit files: in the package, or at the top of a checkout."""
    packaged = Path(str(importlib.resources.files("ckptsync"))) / "systemd"
    return packaged if packaged.is_dir() else packaged.parents[2] / "systemd"


def require_name(name: str) -> str:
    """The name, if an instance and a file can have it. Raises UsageError."""
    if not _NAME.fullmatch(name) or name == "config":
        raise UsageError(
            f"{name!r} cannot be the name of an instance", hint="Use letters, digits and _ . - only; config is reserved."
        )
    return name


def plan(instance: Instance, place: Place) -> list[File]:
    """The files to write, in this order: the template, the drop-in, the settings."""
    template = f"ckptsync-{instance.kind}@.service"
    source = templates() / ("user" if place.user else "") / template
    return [
        File(place.units / template, source.read_text("utf-8")),
        File(place.units / f"{instance.unit}.d" / "50-ckptsync.conf", _drop_in(instance)),
        File(place.settings / f"{instance.name}.toml", _settings(instance)),
    ]


def _drop_in(instance: Instance) -> str:
    """What depends on this machine: the user, the folders and the path of ckptsync."""
    unit = [f"RequiresMountsFor={_quoted(str(instance.output_dir))}"]
    unit += [f"Before={instance.before}"] if instance.before else []
    command = "watch" if instance.kind == "watch" else "run"
    program = " ".join(_quoted(word.replace("$", "$$")) for word in instance.program)
    service = [f"User={instance.owner.name}"] if instance.owner else []
    service += [f"WorkingDirectory={str(instance.folder).replace('%', '%%')}"] if instance.folder else []
    service += ["ExecStart=", f"ExecStart={program} {command} --config %E/ckptsync/%i.toml"]
    if instance.kind == "watch":
        service.append(f"ReadWritePaths={_quoted(str(instance.output_dir))}")
    header = f"# Written by `ckptsync install-units`; `ckptsync uninstall-units {instance.name}` removes it."
    return "\n".join([header, "", "[Unit]", *unit, "", "[Service]", *service, ""])


def _settings(instance: Instance) -> str:
    header = f"# Settings of {instance.unit}: keys are flag names. `systemctl reload` applies those that can change at run time."
    return "\n".join([header, *(f"{key} = {_toml(value)}" for key, value in instance.settings.items()), ""])


def _toml(value: str | Sequence[str]) -> str:
    """A string or a list of strings. TOML escapes as JSON does, except for the surrogates that ensure_ascii would write."""
    return json.dumps(value if isinstance(value, str) else list(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _quoted(word: str) -> str:
    """One word of a unit file, where % begins a specifier and a space ends the word (systemd.syntax(7))."""
    word = word.replace("%", "%%")
    if _PLAIN.fullmatch(word.replace("%", "").replace("$", "")):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
