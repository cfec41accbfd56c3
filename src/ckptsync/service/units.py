"""The systemd units of one instance: what an installation writes, and how exactly that is taken away again.

An instance is a name; its settings file is NAME.toml in the manager's configuration folder. Runs no systemctl: what is written
here changes nothing before the administrator lets it. What was written stands in NAME.installed.json, with digests: a file that
somebody changed since is theirs.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptsync import durable
from ckptsync.errors import CkptsyncError, NotFoundError, UsageError

KINDS = ("watch", "resume")
"""The sidecar beside a training, and the whole job."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PLAIN = re.compile(r"[A-Za-z0-9_./@:+=,-]+")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a manager looks: its unit files, and its configuration folder, which units call %E. `user`: that of a user."""

    units: Path
    settings: Path
    user: bool = False


SYSTEM = Place(Path("/etc/systemd/system"), Path("/etc/ckptsync"))


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose files these are, and so whom the unit runs as."""

    name: str
    uid: int
    gids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Instance:
    """What to install: `program` is how this very ckptsync is called, `settings` the content of the settings file.

    `folder` is where the training is started. `before` names the unit of a training that a watcher has to outlive.
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
        """As systemctl calls it."""
        return f"ckptsync-{self.kind}@{self.name}.service"


@dataclass(frozen=True, slots=True)
class File:
    """One file to write."""

    path: Path
    text: str

    @property
    def digest(self) -> str:
        """Of its content."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def templates() -> Path:
    """The folder of the unit files: in the package, or in a checkout at the top."""
    packaged = Path(str(importlib.resources.files("ckptsync"))) / "systemd"
    return packaged if packaged.is_dir() else packaged.parents[2] / "systemd"


def require_name(name: str) -> str:
    """The name, if it can be an instance's and a file's. Raises UsageError."""
    if not _NAME.fullmatch(name) or name == "config":
        raise UsageError(f"{name!r} cannot be the name of an instance", hint="Letters, digits and _ . - can; config is taken.")
    return name


def plan(instance: Instance, place: Place) -> list[File]:
    """What to write, in the order of writing: the template, the drop-in, the settings."""
    template = f"ckptsync-{instance.kind}@.service"
    source = templates() / ("user" if place.user else "") / template
    return [
        File(place.units / template, source.read_text("utf-8")),
        File(place.units / f"{instance.unit}.d" / "50-ckptsync.conf", _drop_in(instance)),
        File(place.settings / f"{instance.name}.toml", _settings(instance)),
    ]


def write(instance: Instance, place: Place, files: Sequence[File], *, force: bool = False) -> None:
    """Write the files, and first what they are, so that a crash leaves nothing unknown.

    Raises UsageError, with nothing written, where something else is there already, unless by force.
    """
    others = [file.path for file in files if file.path.exists() and file.path.read_text("utf-8") != file.text]
    if others and not force:
        raise UsageError(
            f"not overwritten: {', '.join(map(str, others))}", hint="Look at what is there; --force writes over it, all the same."
        )
    before = _installed(place, instance.name)
    digests = {**before.get("files", {}), **{str(file.path): file.digest for file in files}}
    missing = [str(folder) for file in files for folder in file.path.parents if not folder.exists()]
    folders = sorted({*before.get("folders", []), *missing})
    durable.make_folder(place.settings)
    durable.write_json(_list_of(place, instance.name), {"version": 1, "files": digests, "folders": folders})
    for file in files:
        durable.make_folder(file.path.parent)
        durable.write_text(file.path, file.text)


def enabled(place: Place, name: str) -> list[str]:
    """The units of an instance that the manager would still start."""
    links = [link.name for kind in KINDS for link in place.units.glob(f"*.wants/ckptsync-{kind}@{name}.service")]
    return sorted(set(links))


def remove(place: Place, name: str) -> tuple[list[Path], list[Path]]:
    """Take away what was written for an instance. Returns what went and what stays, since it was changed or others need it.

    Raises NotFoundError where nothing was installed under that name.
    """
    installed = _installed(place, name)
    if not installed:
        raise NotFoundError(f"nothing was installed as {name!r}", hint=f"There is no {_list_of(place, name)}.")
    gone, kept = [], []
    for path, digest in ((Path(text), digest) for text, digest in installed["files"].items()):
        if not path.exists():
            continue
        if _needed_elsewhere(place, name, path) or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            kept.append(path)
        else:
            path.unlink()
            gone.append(path)
    _list_of(place, name).unlink()
    gone += [folder for folder in map(Path, reversed(installed["folders"])) if _removed_if_empty(folder)]
    return gone, kept


def _removed_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _list_of(place: Place, name: str) -> Path:
    return place.settings / f"{name}.installed.json"


def _installed(place: Place, name: str) -> dict[str, dict[str, str]]:
    return durable.read_json(_list_of(place, name)) or {}


def _needed_elsewhere(place: Place, name: str, path: Path) -> bool:
    lists = [each for each in place.settings.glob("*.installed.json") if each != _list_of(place, name)]
    return any(str(path) in (durable.read_json(each) or {}).get("files", {}) for each in lists)


def _drop_in(instance: Instance) -> str:
    """What depends on this machine: who, where, and which ckptsync."""
    unit = [f"RequiresMountsFor={_quoted(str(instance.output_dir))}"]
    unit += [f"Before={instance.before}"] if instance.before else []
    command = "watch" if instance.kind == "watch" else "run"
    program = " ".join(_quoted(word.replace("$", "$$")) for word in instance.program)
    service = [f"User={instance.owner.name}"] if instance.owner else []
    service += [f"WorkingDirectory={str(instance.folder).replace('%', '%%')}"] if instance.folder else []
    service += ["ExecStart=", f"ExecStart={program} {command} --config %E/ckptsync/%i.toml"]
    if instance.kind == "watch":
        service.append(f"ReadWritePaths={_quoted(str(instance.output_dir))}")
    header = f"# Written by `ckptsync install-units`; `ckptsync uninstall-units {instance.name}` takes it away."
    return "\n".join([header, "", "[Unit]", *unit, "", "[Service]", *service, ""])


def _settings(instance: Instance) -> str:
    header = f"# Settings of {instance.unit}: the names of the flags. `systemctl reload` takes what can change under way."
    return "\n".join([header, *(f"{key} = {_toml(value)}" for key, value in instance.settings.items()), ""])


def _toml(value: str | Sequence[str]) -> str:
    """A string or a list of strings. TOML's escapes are JSON's, but for the surrogates that ensure_ascii would make."""
    return json.dumps(value if isinstance(value, str) else list(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _quoted(word: str) -> str:
    """One word of a unit file: % would begin a specifier, and spaces would end it (systemd.syntax(7))."""
    word = word.replace("%", "%%")
    if _PLAIN.fullmatch(word.replace("%", "").replace("$", "")):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def require_reachable(paths: Sequence[Path], owner: Owner) -> None:
    """Raises UsageError for the first path that the owner cannot get at, naming what is in the way.

    Without privileges, as units run: root too comes into no home of mode 0700 but its own.
    """
    for path in paths:
        obstacle = next(_obstacles(path, owner), None)
        if obstacle:
            raise UsageError(
                f"{owner.name} cannot reach {path}: {obstacle} has mode {stat.S_IMODE(obstacle.stat().st_mode):04o}",
                hint="Install ckptsync where that user can reach it, below /opt for instance, and call install-units from there.",
            )


def _obstacles(path: Path, owner: Owner) -> Iterator[Path]:
    """What on the way to a file keeps its reader out. Each folder of each link on it has to be passed."""
    for step in _ways(path):
        status = step.stat()
        bits = 0o1 if step.is_dir() else 0o4
        shift = 6 if status.st_uid == owner.uid else 3 if status.st_gid in owner.gids else 0
        if not (status.st_mode >> shift) & bits:
            yield step


def _ways(path: Path) -> Iterator[Path]:
    for _ in range(40):
        yield from reversed(path.parents)
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    real = Path(os.path.realpath(path))
    if not real.exists():
        raise CkptsyncError(f"{path} is not there", hint="Check the installation of ckptsync.")
    yield from reversed(real.parents)
    yield real
