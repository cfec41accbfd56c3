"""The least that a client has to do: hash on one thread, PUT, GET in ranges. The baseline for what a tool costs."""

from __future__ import annotations

import base64
import http.client
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from ckptsync.server.storage.content_store import HASHERS, Hasher
from tests.bench.bed import BenchServer

PIECE = 2**20
RANGE = 32 * 2**20
READERS = 8


def digest(paths: Sequence[Path], algorithm: str = "md5") -> Hasher:
    """The digest of the concatenated files, on one thread."""
    found = HASHERS[algorithm]()
    buffer = memoryview(bytearray(PIECE))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                found.update(buffer[:count])
    return found


def md5(paths: Sequence[Path]) -> Hasher:
    """The MD5 of the concatenated files."""
    return digest(paths)


class _Joined:
    """Concatenated files, as a body that http.client can read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [path.open("rb", buffering=0) for path in paths]

    def read(self, size: int) -> bytes:
        while self._files:
            if piece := self._files[0].read(size):
                return piece
            self._files.pop(0).close()
        return b""


def put(server: BenchServer, paths: Sequence[Path], proof: Hasher) -> None:
    """One PUT of all files, concatenated; the server answers once it has hashed and stored them."""
    url = urlsplit(server.put_link(f"md5-{proof.hexdigest()}"))
    connection = http.client.HTTPConnection(url.netloc, blocksize=PIECE)
    length = sum(path.stat().st_size for path in paths)
    headers = {"Content-MD5": base64.b64encode(proof.digest()).decode(), "Content-Length": str(length)}
    connection.request("PUT", f"{url.path}?{url.query}", body=_Joined(paths), headers=headers)  # type: ignore[arg-type]
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"PUT: {answer.status}")


def get(server: BenchServer, key: str, target: Path, size: int) -> None:
    """One plain GET into a file."""
    with target.open("wb", buffering=0) as file:
        file.truncate(size)
        fetch_range(server.get_link(key), target, 0, size)


def get_in_ranges(server: BenchServer, files: Sequence[tuple[str, int]], into: Path) -> None:
    """Download every (key, size) in 8 parallel ranges of 32 MB, and compute the MD5 of each file once it has arrived."""
    with ThreadPoolExecutor(READERS) as pool:
        for key, size in files:
            target = into / key
            with target.open("wb") as file:
                file.truncate(size)
            spans = [(start, min(start + RANGE, size)) for start in range(0, size, RANGE)]
            for part in [pool.submit(fetch_range, server.get_link(key), target, *span) for span in spans]:
                part.result()
        list(pool.map(lambda file: md5([into / file[0]]).digest(), files))


def fetch_range(link: str, target: Path, start: int, stop: int) -> None:
    """Download the bytes from start to stop to their offset in an existing file."""
    url = urlsplit(link)
    connection = http.client.HTTPConnection(url.netloc)
    connection.request("GET", f"{url.path}?{url.query}", headers={"Range": f"bytes={start}-{stop - 1}"})
    answer = connection.getresponse()
    buffer = memoryview(bytearray(PIECE))
    with target.open("r+b", buffering=0) as file:
        file.seek(start)
        while count := answer.readinto(buffer):
            file.write(buffer[:count])
        if file.tell() != stop:
            raise RuntimeError("GET: cut short")
    connection.close()
