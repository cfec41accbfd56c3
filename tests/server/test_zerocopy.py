"""Files that the kernel sends: the same bytes as any others, and no harm in a client that goes away."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.server import api
from tests.server_process import ServerProcess

SIZE = 9 * 2**20 + 7
"""More than the server sends at once."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server as users run it: with faults, every byte would pass through the process."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data", faults=False) as started:
        yield started


@pytest.fixture(scope="module")
def content() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture(scope="module")
def address(plain: ServerProcess, content: bytes) -> str:
    """Where the content is."""
    api.save(plain, "big", {"weights": content})
    (version,) = api.versions(plain, "big")
    return str(version["node"]["files"]["edges"][0]["node"]["directUrl"])


def test_a_whole_file_comes_as_it_was_put(plain: ServerProcess, address: str, content: bytes) -> None:
    assert plain.request("GET", address) == (200, content)


@pytest.mark.parametrize("first, last", [(0, 0), (1, 2**22), (2**22 - 1, 2**22 + 1), (SIZE - 5, SIZE - 1)])
def test_a_range_comes_alone(plain: ServerProcess, address: str, content: bytes, first: int, last: int) -> None:
    found = plain.request("GET", address, headers={"Range": f"bytes={first}-{last}"})

    assert found == (206, content[first : last + 1])


def test_several_answers_come_on_one_connection(address: str, content: bytes) -> None:
    url = urlsplit(address)
    request = f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nRange: bytes=5-4200000\r\n\r\n".encode()

    with socket.create_connection((url.hostname or "", url.port or 0)) as line:
        for _ in range(3):
            line.sendall(request)
            answer = _read(line, 4200000 - 4)

            assert answer == content[5:4200001]


def test_a_client_that_leaves_in_the_middle_harms_nobody(plain: ServerProcess, address: str, content: bytes) -> None:
    url = urlsplit(address)
    for _ in range(20):
        with socket.create_connection((url.hostname or "", url.port or 0)) as line:
            line.sendall(f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
            line.recv(1000)

    assert plain.request("GET", address) == (200, content)
    assert [each["status"] for each in plain.requests() if each["path"].startswith("/storage")][-1] == 200


def test_the_log_knows_how_many_bytes_went(plain: ServerProcess, address: str) -> None:
    plain.request("GET", address, headers={"Range": "bytes=10-109"})

    assert plain.requests()[-1]["sent"] == 100


def _read(line: socket.socket, length: int) -> bytes:
    """The body of one answer."""
    received = bytearray()
    while b"\r\n\r\n" not in received:
        received += line.recv(2**16)
    head, _, rest = bytes(received).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 206")
    body = bytearray(rest)
    while len(body) < length:
        body += line.recv(2**16)
    return bytes(body)
