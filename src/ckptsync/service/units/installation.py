"""Writes the files of an instance, and removes exactly those.

NAME.installed.json lists what was written, with digests: a file that somebody changed since then is theirs and stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ckptsync import durable
from ckptsync.errors import NotFoundError, UsageError
from ckptsync.service.units.content import KINDS, File, Instance, Place


def write(instance: Instance, place: Place, files: Sequence[File], *, force: bool = False) -> None:
    """Write the files, and before them the list of them, so that `remove` works after a crash too.

    Raises UsageError, having written nothing, if a file exists with other content, unless `force` is set.
    """
    others = [file.path for file in files if file.path.exists() and file.path.read_text("utf-8") != file.text]
    if others and not force:
        raise UsageError(
            f"not overwritten: {', '.join(map(str, others))}",
            hint="Compare them with the output of --dry-run; --force overwrites them.",
        )
    before = _read_manifest(place, instance.name)
    digests = {**before.get("files", {}), **{str(file.path): file.digest for file in files}}
    missing = [str(folder) for file in files for folder in file.path.parents if not folder.exists()]
    folders = sorted({*before.get("folders", []), *missing})
    durable.make_folder(place.settings)
    durable.write_json(_manifest_path(place, instance.name), {"version": 1, "files": digests, "folders": folders})
    for file in files:
        durable.make_folder(file.path.parent)
        durable.write_text(file.path, file.text)


def enabled(place: Place, name: str) -> list[str]:
    """The units of an instance that are still enabled."""
    links = [link.name for kind in KINDS for link in place.units.glob(f"*.wants/ckptsync-{kind}@{name}.service")]
    return sorted(set(links))


def remove(place: Place, name: str) -> tuple[list[Path], list[Path]]:
    """Delete what was installed for an instance. Returns what was deleted, and what was kept: changed or needed by another one.

    Raises NotFoundError if nothing was installed under that name.
    """
    installed = _read_manifest(place, name)
    if not installed:
        raise NotFoundError(f"nothing was installed as {name!r}", hint=f"{_manifest_path(place, name)} does not exist.")
    deleted, kept = [], []
    for path, digest in ((Path(text), digest) for text, digest in installed["files"].items()):
        if not path.exists():
            continue
        if _needed_by_another(place, name, path) or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            kept.append(path)
        else:
            path.unlink()
            deleted.append(path)
    _manifest_path(place, name).unlink()
    deleted += [folder for folder in map(Path, reversed(installed["folders"])) if _delete_if_empty(folder)]
    return deleted, kept


def _delete_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _manifest_path(place: Place, name: str) -> Path:
    return place.settings / f"{name}.installed.json"


def _read_manifest(place: Place, name: str) -> dict[str, dict[str, str]]:
    return durable.read_json(_manifest_path(place, name)) or {}


def _needed_by_another(place: Place, name: str, path: Path) -> bool:
    lists = [each for each in place.settings.glob("*.installed.json") if each != _manifest_path(place, name)]
    return any(str(path) in (durable.read_json(each) or {}).get("files", {}) for each in lists)
