"""A version's manifest: the path, size and digest of each file. Doesn't import wandb.

A manifest comes from the network, so each path is checked to stay inside the folder before anything is written.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from ckptsync.checkpoint import Version
from ckptsync.errors import IntegrityError, TransientStoreError

if TYPE_CHECKING:
    import requests

ANSWER = 20.0
"""Seconds for a server to answer, and from one piece of its answer to the next."""

READERS = 8
"""Files at once, and ranges at once."""


def entries_of(artifact: Any, version: Version) -> dict[str, Entry]:
    """The files that a version's manifest names. Raises IntegrityError for a malformed manifest."""
    from pydantic import ValidationError

    try:
        manifest = manifest_of(artifact)
    except ValidationError as error:
        # Other errors may come from an error page instead of a manifest: the client doesn't check the status (wandb 0.31).
        raise IntegrityError(f"the manifest of {version.name}:{version.version} is malformed") from error
    return {path: Entry.of(path, entry) for path, entry in manifest.entries.items()}


def manifest_of(artifact: Any) -> Any:
    """The manifest of a client's artifact, downloaded on first use.

    By itself the client tries that for 20 minutes, and waits without end for a server that never answers (wandb 0.31).
    """
    client = sys.modules[type(artifact).__module__]
    make = getattr(client, "make_http_session", None)
    if make is None:
        return artifact.manifest
    client.make_http_session = lambda: _limited(make())  # type: ignore[attr-defined]
    try:
        return artifact.manifest
    finally:
        client.make_http_session = make  # type: ignore[attr-defined]


def _limited(session: requests.Session) -> requests.Session:
    from requests.adapters import HTTPAdapter

    class Limited(HTTPAdapter):
        def send(self, *args: Any, **options: Any) -> requests.Response:
            return super().send(*args, **{**options, "timeout": options.get("timeout") or ANSWER})

    for scheme in ("http://", "https://"):
        session.mount(scheme, Limited())
    return session


def remove_others(folder: Path, wanted: Collection[str]) -> None:
    """Delete what an earlier download of something else left in a folder; links are removed, never followed."""
    for parent, folders, files in os.walk(folder):
        for name in [*files, *(name for name in folders if Path(parent, name).is_symlink())]:
            path = Path(parent, name)
            if path.is_symlink() or path.relative_to(folder).as_posix() not in wanted:
                path.unlink()


def counted(entries: Collection[Entry], progress: Callable[[int, int], None]) -> Callable[[int], None]:
    """Sums bytes for `progress`, from any thread, and never beyond the total when a file is read twice."""
    done, total, lock = 0, sum(entry.size for entry in entries), threading.Lock()

    def arrived(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            progress(min(done, total), total)

    return arrived


def differing(entries: Collection[Entry], folder: Path, *, progress: Callable[[int, int], None]) -> list[str]:
    """The paths of the entries that a local folder doesn't prove. Where links are on the way, nothing is read."""
    arrived = counted(entries, progress)

    def differs(entry: Entry) -> bool:
        try:
            return not entry.proved(folder, arrived=arrived)
        except IntegrityError:
            return True

    with ThreadPoolExecutor(READERS) as readers:
        return [entry.path for entry, other in zip(entries, readers.map(differs, entries), strict=True) if other]


def written(digest: Any) -> str:
    """A digest as the manifest writes it."""
    return b64encode(digest.digest()).decode()


class Entry:
    """One file of a manifest, with a path that is known to stay inside the target folder."""

    __slots__ = ("algorithm", "digest", "path", "size")

    def __init__(self, path: str, size: int, digest: str, algorithm: str) -> None:
        self.path, self.size, self.digest, self.algorithm = path, size, digest, algorithm

    @classmethod
    def of(cls, path: str, entry: Any) -> Entry:
        pure = PurePosixPath(path)
        # A backslash is an ordinary character here, but who means another system's way out means no good.
        if pure.is_absolute() or ".." in (*pure.parts, *PureWindowsPath(path).parts) or "\0" in path or not pure.parts:
            raise IntegrityError(
                f"the version names a file {path!r}, which would leave the folder", hint="Do not trust this version."
            )
        if entry.ref is not None:
            raise IntegrityError(f"{path} is a reference to {entry.ref}, not a stored file")
        return cls(path, int(entry.size or 0), str(entry.digest), str(entry.digest_algorithm().value))

    def proved(self, folder: Path, *, arrived: Callable[[int], None] = lambda _: None) -> bool:
        """Whether the file in a folder has this entry's size and digest. `arrived` is told how many bytes were read."""
        self.require_no_links(folder)
        target = folder / self.path
        try:
            if target.stat().st_size != self.size:
                return False
            return self._digest(target, arrived) == self.digest
        except (FileNotFoundError, NotADirectoryError):
            return False

    def require_no_links(self, folder: Path) -> None:
        """Raise IntegrityError where the file, or a folder on the way to it, is a link."""
        target = folder / self.path
        if any(parent.is_symlink() for parent in (target, *target.parents) if parent != folder and folder in parent.parents):
            raise IntegrityError(f"{target} leads through a symbolic link", hint="Remove the link.")

    def digest_of(self, pieces: Iterable[bytes | memoryview]) -> str:
        """The digest of these bytes, as the manifest writes it."""
        digest = self.hasher()
        for piece in pieces:
            digest.update(piece)
        return written(digest)

    def hasher(self) -> Any:
        """A hasher of this file's algorithm."""
        if "XXH128" in self.algorithm.upper():
            import xxhash

            return xxhash.xxh3_128()
        return hashlib.md5(usedforsecurity=False)

    def _digest(self, target: Path, arrived: Callable[[int], None]) -> str:
        buffer = bytearray(4 * 2**20)
        view = memoryview(buffer)

        def pieces(file: io.FileIO) -> Iterator[memoryview]:
            while count := file.readinto(buffer):
                arrived(count)
                yield view[:count]

        with target.open("rb", buffering=0) as file:
            return self.digest_of(pieces(file))


class Urls:
    """The signed URLs of a version's files, listed in pages. An expired one is renewed when the fetch is retried."""

    def __init__(self, artifact: Any) -> None:
        self._known = {file.name: file.direct_url for file in artifact.files(per_page=1000)}

    def of(self, path: str) -> str:
        """The URL of a file. Raises TransientStoreError when the store gave none."""
        url = self._known.get(path)
        if not url:
            raise TransientStoreError(f"the store gave no URL for {path}")
        return str(url)
