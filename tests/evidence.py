"""What the server and the spool hold in the end, read without the client and without the code that put it there."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from tests.server_process import ServerProcess

VERSIONS = """query Versions($name: String!, $project: String!) { project(name: $project, entityName: "local") {
    artifactCollection(name: $name) { artifacts { edges { version node { state metadata aliases { alias }
    currentManifest { file { directUrl } } } } } } } }"""

Digests = Mapping[str, str]
"""The files of one save: relative path, then base64 of the XXH128."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One committed version, by its manifest."""

    version: str
    aliases: frozenset[str]
    step: int
    files: Digests


@dataclass(frozen=True, slots=True)
class Damage:
    """What should all be empty. `lost` names saves; `torn` and `duplicate` name versions."""

    lost: tuple[str, ...] = ()
    torn: tuple[str, ...] = ()
    duplicate: tuple[str, ...] = ()


def versions(server: ServerProcess, name: str, project: str = "tests") -> list[Kept]:
    """The committed versions of an artifact, oldest first."""
    answer = server.graphql(VERSIONS, name=name, project=project)
    collection = (answer["data"]["project"] or {}).get("artifactCollection")
    edges = collection["artifacts"]["edges"] if collection else []
    found = [_kept(server, edge["version"], edge["node"]) for edge in edges if edge["node"]["state"] == "COMMITTED"]
    return sorted(found, key=lambda each: int(each.version.removeprefix("v")))


def _kept(server: ServerProcess, version: str, node: Mapping[str, object]) -> Kept:
    manifest = node["currentManifest"]
    assert isinstance(manifest, dict)
    status, body = server.request("GET", manifest["file"]["directUrl"])
    assert status == 200, body
    files = {path: str(entry["digest"]) for path, entry in json.loads(body)["contents"].items()}
    aliases = node["aliases"]
    assert isinstance(aliases, list)
    step = json.loads(str(node["metadata"]))["global_step"]
    return Kept(version, frozenset(each["alias"] for each in aliases), step, files)


def digest(content: bytes) -> str:
    """As a manifest writes it."""
    return base64.b64encode(xxhash.xxh128(content).digest()).decode()


def content(server: ServerProcess, expected: str) -> bytes:
    """The bytes that a server keeps under a digest, read from its folder; empty where it keeps none."""
    name = base64.b64decode(expected).hex()
    path = server.data_dir / "content" / "xxh128" / name[:2] / name
    return path.read_bytes() if path.exists() else b""


def digests(folder: Path) -> Digests:
    """Every file below a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in paths}


def damage(kept: Iterable[Kept], saves: Mapping[str, Digests], *, wanted: Iterable[str]) -> Damage:
    """Compare versions with what was saved: every wanted save has a version, each version is one save, none is there twice."""
    by_content = {_key(files): name for name, files in saves.items()}
    held = [(each.version, by_content.get(_key(each.files))) for each in kept]
    counts = Counter(name for _, name in held if name)
    return Damage(
        lost=tuple(name for name in wanted if name not in counts),
        torn=tuple(version for version, name in held if name is None),
        duplicate=tuple(version for version, name in held if name and counts[name] > 1),
    )


def _key(files: Digests) -> frozenset[tuple[str, str]]:
    return frozenset(files.items())


def leftovers(output_dir: Path) -> list[str]:
    """What is left of work under way: temporary names, unsent snapshots, the client's own folder, unfinished downloads."""
    root = output_dir / ".ckptsync"
    found = [path for path in root.rglob("*") if path.name.startswith(".tmp-")]
    found += [path for name in ("spool", "incoming") for path in (root / name).glob("*")]
    found += [path for path in (root / "wandb",) if path.exists()]
    return sorted({str(path.relative_to(root)) for path in found})


def look(folder: Path, *, but: str = ".ckptsync") -> dict[str, tuple[int, int, int]]:
    """Name, inode, size and mtime of everything below a folder outside one subfolder."""
    found = {}
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if relative.parts[0] != but:
            status = path.lstat()
            found[str(relative)] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def hexadecimal(content: bytes) -> str:
    """The XXH128 as it stands in the server's addresses."""
    return xxhash.xxh128(content).hexdigest()
