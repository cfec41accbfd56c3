"""Brings a signed URL's bytes into a file, in parallel ranges. Knows HTTP and files, nothing of W&B.

wandb 0.31's own download writes 16 KiB at a time, reads ranges only from 2 GiB on, and keeps one shared target path per artifact
while 32 threads use it; hence ours. `requests` is wandb's own HTTP client, so no dependency is added.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ckptsync.errors import IntegrityError, NotFoundError, TransientStoreError

if TYPE_CHECKING:
    import requests

RANGE = 32 * 2**20
"""Bytes asked for at once. 8 parallel ranges of 32 MB were the fastest way on two cores (measured against one plain GET)."""

CHUNK = 2**20
TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and to wait for the next bytes."""


def spans(size: int) -> Iterator[tuple[int, int]]:
    """The ranges of a file, as (first byte, byte after the last)."""
    for start in range(0, size, RANGE):
        yield start, min(start + RANGE, size)


def download(
    session: requests.Session,
    url: Callable[[], str],
    target: Path,
    size: int,
    *,
    pool: ThreadPoolExecutor,
    arrived: Callable[[int], None],
) -> None:
    """Fill `target` with the `size` bytes behind a URL, range by range in `pool`.

    Raises TransientStoreError where the connection broke, NotFoundError where the file is gone, and IntegrityError where the
    server sent another number of bytes than asked for. The content is not proved here.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
    try:
        os.truncate(descriptor, size)
        try:
            _all(pool.submit(_range, session, url, descriptor, span, size, arrived) for span in spans(size))
        except _RangesIgnoredError:
            # A proxy that strips the Range header would do so for ever.
            _all([pool.submit(_range, session, url, descriptor, (0, size), size, arrived)])
    finally:
        os.close(descriptor)


class _RangesIgnoredError(TransientStoreError):
    """The whole file came as the answer to a range."""


def _all(parts: Iterable[Future[None]]) -> None:
    """Wait for every part, also when one failed: none may write into the file after it is closed."""
    parts = list(parts)
    try:
        for part in parts:
            part.result()
    finally:
        for part in parts:
            part.cancel()
        for part in parts:
            if not part.cancelled():
                part.exception()


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
    """A refused URL may have expired, and a new one is asked for on the next try; only 404 and 410 are final."""
    if answer.status_code in (404, 410):
        raise NotFoundError("a file of the version is gone from the store", hint="See `ckptsync list` for other versions.")
    if answer.status_code >= 400:
        raise TransientStoreError(f"the store answered a download with status {answer.status_code}")
