"""Download a signed URL into a file, in parallel ranges. Knows HTTP and files, nothing of W&B.

wandb 0.31's own download writes 16 KiB at a time, reads ranges only from 2 GiB on, and keeps one shared target path per artifact
while 32 threads use it; hence ours. `requests` is wandb's own HTTP client, so no dependency is added.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ckptsync.errors import IntegrityError, NotFoundError, TransientStoreError
from ckptsync.store.client_errors import asked_to_wait

if TYPE_CHECKING:
    import requests

RANGE = 32 * 2**20
"""Bytes asked for at once. 8 parallel ranges of 32 MB were the fastest way on two cores (measured against one plain GET)."""

SIDECAR = ".ckptsync-ranges"
"""The suffix of the file that lists the finished ranges of a download."""

LONGEST_NAME = 255
"""Bytes that a file's name may have on the usual file systems of Linux."""

HASH_PIECE = 4 * 2**20
CHUNK = 2**20
TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and to wait for the next bytes."""


def spans(size: int) -> Iterator[tuple[int, int]]:
    """The ranges of a file, as (first byte, byte after the last)."""
    for start in range(0, size, RANGE):
        yield start, min(start + RANGE, size)


def sidecar(target: Path) -> Path:
    """Where the finished ranges of a file are listed: beside it, under a name that a file system takes."""
    name = target.name + SIDECAR
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32] + SIDECAR
    return target.with_name(name)


@dataclass(frozen=True, slots=True)
class Finished:
    """The finished ranges of a file, listed in a sidecar: an interrupted download continues inside the file.

    `mark` identifies the content, such as its digest. The list proves nothing: after a power cut it may name ranges whose bytes
    were lost. Whoever verifies the file calls `forget`, and a file that fails is downloaded from the start.
    """

    path: Path
    head: str

    @classmethod
    def of(cls, target: Path, size: int, mark: str) -> Finished:
        """The list for a file."""
        return cls(sidecar(target), f"{size} {RANGE} {mark}\n")

    def starts(self) -> set[int]:
        """The start of each finished range; none when the list is missing or for another content."""
        with contextlib.suppress(OSError, ValueError):
            text = self.path.read_text("ascii")
            if text.startswith(self.head):
                # The last piece is empty, or a line that was cut.
                return {int(line) for line in text.removeprefix(self.head).split("\n")[:-1]}
        return set()

    def begin(self) -> None:
        """Start an empty list. If it can't be written, an interrupted download starts from the beginning."""
        with contextlib.suppress(OSError):
            self.path.write_text(self.head, "ascii")

    def add(self, start: int) -> None:
        """Add a range, in one write call, so that the lines of two threads don't mix."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
            try:
                os.write(descriptor, f"{start}\n".encode())
            finally:
                os.close(descriptor)

    def forget(self) -> None:
        """Delete the list: the file is verified, or has to be downloaded again."""
        with contextlib.suppress(OSError):
            self.path.unlink()


def download(
    session: requests.Session,
    url: Callable[[], str],
    target: Path,
    size: int,
    *,
    pool: ThreadPoolExecutor,
    arrived: Callable[[int], None],
    seen: Callable[[memoryview], object] = len,
    finished: Finished | None = None,
) -> None:
    """Fill `target` with the `size` bytes behind a URL, range by range in `pool`, except those `finished` already.

    `seen` gets every byte of the file in order, each range as soon as it and those before it have arrived.
    Raises TransientStoreError when the connection breaks, NotFoundError when the file is gone, and IntegrityError when the
    server sends more bytes than requested. The content is not verified here.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    wanted = list(spans(size))
    here = finished.starts() if finished and _size(target) == size else set()
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | (0 if here else os.O_TRUNC), 0o644)

    def fetch(span: tuple[int, int]) -> None:
        _range(session, url, descriptor, span, size, arrived)
        if finished:
            finished.add(span[0])

    try:
        os.truncate(descriptor, size)
        if finished and not here and len(wanted) > 1:
            finished.begin()
        arrived(sum(end - start for start, end in wanted if start in here))
        try:
            parts = [None if span[0] in here else pool.submit(fetch, span) for span in wanted]
            _all(parts, [partial(_show, descriptor, span, seen) for span in wanted])
        except _RangesIgnoredError:
            # A proxy that strips the Range header does so every time; the first requested range shows it.
            if here:
                raise
            _all([pool.submit(_range, session, url, descriptor, (0, size), size, arrived)], [lambda: None])
            _show(descriptor, (0, size), seen)
    finally:
        os.close(descriptor)


class _RangesIgnoredError(TransientStoreError):
    """The server sent the whole file for a range request."""


def _all(parts: Sequence[Future[None] | None], after: Sequence[Callable[[], None]]) -> None:
    """Wait for every part, also when one failed: none may write into the file after it is closed.

    Each `after` runs once its part and all before it are done.
    """
    try:
        for part, show in zip(parts, after, strict=True):
            if part is not None:
                part.result()
            show()
    finally:
        for part in filter(None, parts):
            part.cancel()
        for part in filter(None, parts):
            if not part.cancelled():
                part.exception()


def _show(descriptor: int, span: tuple[int, int], seen: Callable[[memoryview], object]) -> None:
    """Pass a finished range to `seen`. It was just written, so it comes from the page cache."""
    buffer = bytearray(min(HASH_PIECE, span[1] - span[0]))
    offset = span[0]
    while offset < span[1]:
        view = memoryview(buffer)[: span[1] - offset]
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise TransientStoreError("a file was truncated during its download")
        seen(view[:count])
        offset += count


def _size(path: Path) -> int | None:
    try:
        return path.stat(follow_symlinks=False).st_size
    except OSError:
        return None


def read(session: requests.Session, url: str, size: int, *, arrived: Callable[[int], None]) -> Iterator[bytes]:
    """The `size` bytes behind a URL, piece by piece and kept nowhere. Raises as `download` does."""
    import requests

    seen = 0
    try:
        with session.get(url, headers={"Accept-Encoding": "identity"}, stream=True, timeout=TIMEOUT) as answer:
            _require_success(answer)
            for chunk in answer.iter_content(CHUNK):
                seen += len(chunk)
                if seen > size:
                    raise IntegrityError(f"the server sent more than the {size} bytes that the manifest says")
                arrived(len(chunk))
                yield chunk
    except requests.RequestException as error:
        raise TransientStoreError(f"download failed: {type(error).__name__}") from error
    if seen != size:
        raise TransientStoreError(f"the connection ended after {seen} of {size} bytes")


def _range(
    session: requests.Session,
    url: Callable[[], str],
    descriptor: int,
    span: tuple[int, int],
    size: int,
    arrived: Callable[[int], None],
) -> None:
    import requests

    start, end = span
    headers = {"Accept-Encoding": "identity"}
    if (start, end) != (0, size):
        headers["Range"] = f"bytes={start}-{end - 1}"
    try:
        with session.get(url(), headers=headers, stream=True, timeout=TIMEOUT) as answer:
            _require_success(answer)
            if "Range" in headers and answer.status_code != 206:
                raise _RangesIgnoredError("the server answered a range with the whole file")
            written = start
            for chunk in answer.iter_content(CHUNK):
                if written + len(chunk) > end:
                    raise IntegrityError(f"the server sent more than the {end - start} bytes that were asked for")
                _write_all(descriptor, chunk, written)
                written += len(chunk)
                arrived(len(chunk))
            if written != end:
                raise TransientStoreError(f"the connection ended after {written - start} of {end - start} bytes")
    except requests.RequestException as error:
        raise TransientStoreError(f"download failed: {type(error).__name__}") from error


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _require_success(answer: requests.Response) -> None:
    """A refused URL may have expired, and a retry gets a new one; only 404 and 410 are final."""
    if answer.status_code in (404, 410):
        raise NotFoundError("a file of the version is gone from the store", hint="See `ckptsync list` for other versions.")
    if answer.status_code >= 400:
        refused = TransientStoreError(f"the store answered a download with status {answer.status_code}")
        refused.retry_after = asked_to_wait(answer.headers)
        raise refused
