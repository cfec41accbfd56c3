"""Stores bytes in files named by their digest. Knows no runs, no artifacts, and no names that a client chose.

```
content/<algorithm>/<first two>/<digest>   complete, verified and durable
incoming/<random>                          being received; deleted at the next start
```
A key is `md5-<32 hex>` or `xxh128-<32 hex>`. A file of 2 GiB or more is uploaded in parts. Each part is a content of its own, and
the file has the key `parts-<sha256 over the parts' keys>`, which exists only in the database.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

KEY = re.compile(r"(md5|xxh128)-[0-9a-f]{32}")


class Hasher(Protocol):
    """The common interface of hashlib's and xxhash's objects."""

    def update(self, data: Any, /) -> None: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...


def _md5() -> Hasher:
    return hashlib.md5(usedforsecurity=False)


HASHERS: dict[str, Callable[[], Hasher]] = {"md5": _md5}
if importlib.util.find_spec("xxhash") is not None:  # comes with wandb 0.31; without it XXH128 is not offered
    import xxhash

    HASHERS["xxh128"] = xxhash.xxh128


class BadDigestError(Exception):
    """The bytes received differ from the declared digest."""


def hex_of(digest: str) -> str:
    """A digest in hex, from hex or from the base64 of W&B's manifests. Raises ValueError for anything else."""
    if re.fullmatch(r"[0-9a-f]{32}", digest):
        return digest
    return base64.b64decode(digest, validate=True).hex()


def key_of(algorithm: str, digest: str) -> str:
    """The key for a digest in hex or base64. Raises ValueError for anything else."""
    key = f"{algorithm}-{hex_of(digest)}"
    if not KEY.fullmatch(key):
        raise ValueError("not a digest")
    return key


def key_of_parts(keys: Iterable[str]) -> str:
    return "parts-" + hashlib.sha256("\n".join(keys).encode()).hexdigest()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class Upload:
    """A body being received: call `digest` and `write` for all of it, then `keep` or `drop`. Blocking; use worker threads."""

    store: Content
    key: str | None
    md5: bytes | None
    size: int = 0
    path: Path = field(init=False)
    _descriptor: int = field(init=False)
    _hashers: dict[str, Hasher] = field(init=False)

    def __post_init__(self) -> None:
        algorithms = {"md5"} if self.key is None or self.md5 is not None else set()
        if self.key is not None:
            algorithms.add(self.key.partition("-")[0])
        self._hashers = {algorithm: HASHERS[algorithm]() for algorithm in algorithms}
        self.path = self.store.incoming / secrets.token_hex(16)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def digest(self, chunks: Iterable[bytes | memoryview]) -> None:
        """Hash the next chunks of the body. May run in parallel to `write`: both release the GIL."""
        for chunk in chunks:
            for hasher in self._hashers.values():
                hasher.update(chunk)

    def write(self, chunks: Iterable[bytes | memoryview]) -> None:
        """Write the next chunks of the body."""
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._descriptor, view) :]
            self.size += len(chunk)

    def keep(self) -> str:
        """Make the bytes durable under their key and return it. Raises BadDigestError if they differ from the declared digest."""
        if self.md5 is not None and self._hashers["md5"].digest() != self.md5:
            raise BadDigestError("The Content-MD5 you specified did not match what we received.")
        algorithm = self.key.partition("-")[0] if self.key is not None else "md5"
        key = f"{algorithm}-{self._hashers[algorithm].hexdigest()}"
        if self.key not in (None, key):
            raise BadDigestError("The digest in the link does not match what we received.")
        os.fsync(self._descriptor)
        self._close()
        target = self.store.path(key)
        self.path.rename(target)
        _sync_folder(target.parent)
        return key

    def drop(self) -> None:
        """Discard what was received. Does nothing after `keep`."""
        self._close()
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True, slots=True)
class Content:
    """The contents in `root`, a folder that no other process writes to."""

    root: Path

    def __post_init__(self) -> None:
        for algorithm in ("md5", "xxh128"):
            for number in range(256):
                (self.root / "content" / algorithm / f"{number:02x}").mkdir(parents=True, exist_ok=True)
            _sync_folder(self.root / "content" / algorithm)
        self.incoming.mkdir(exist_ok=True)
        _sync_folder(self.root)

    @property
    def incoming(self) -> Path:
        return self.root / "incoming"

    def path(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise ValueError("not a content key")
        algorithm, _, digest = key.partition("-")
        return self.root / "content" / algorithm / digest[:2] / digest

    def size(self, key: str) -> int | None:
        """The number of bytes, None if the content is not here."""
        try:
            return self.path(key).stat().st_size
        except FileNotFoundError:
            return None

    def upload(self, key: str | None, md5: bytes | None) -> Upload:
        """Start receiving a body, to be stored under `key` if that is given, else under its MD5."""
        return Upload(self, key, md5)

    def add(self, content: bytes) -> str:
        """Store bytes under their MD5 and return the key."""
        upload = self.upload(None, None)
        try:
            upload.digest([content])
            upload.write([content])
            return upload.keep()
        finally:
            upload.drop()

    def remove(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def keys(self) -> Iterator[str]:
        for folder in (self.root / "content").glob("*/*"):
            for entry in os.scandir(folder):
                yield f"{folder.parent.name}-{entry.name}"

    def sweep_incoming(self) -> None:
        """Delete what unfinished uploads left behind. Call it only before the first upload."""
        for leftover in self.incoming.iterdir():
            with contextlib.suppress(OSError):
                leftover.unlink()
