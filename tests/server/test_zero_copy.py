"""Bodies that bypass the process or uvicorn: the bytes are the same, and a client that disconnects does no harm."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from ckptsync.server.app import listening
from tests.server import api
from tests.server_process import ServerProcess

SIZE = 9 * 2**20 + 7
"""Larger than one piece of the server."""


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
    """The path of the content."""
    api.save(plain, "big", {"weights": content})
    (version,) = api.versions(plain, "big")
    return str(version["node"]["files"]["edges"][0]["node"]["directUrl"])


def test_a_whole_file_comes_as_it_was_put(plain: ServerProcess, address: str, content: bytes) -> None:
    assert plain.request("GET", address) == (200, content)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 2**22), (2**22 - 1, 2**22 + 1), (SIZE - 5, SIZE - 1)])
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


def put(server: ServerProcess, content: bytes, *, length: int | None = None, pause: float = 0.0) -> bytes:
    """Send a body in two parts with a pause between them; return the response until the connection is closed."""
    url = urlsplit(str(api.announce(server, api.create(server, f"by-hand-{len(content)}"), "w", content)["uploadUrl"]))
    head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {length or len(content)}\r\n\r\n"
    with socket.create_connection((url.hostname or "", url.port or 0)) as line:
        line.settimeout(20)
        line.sendall(head.encode() + content[:100])
        time.sleep(pause)
        line.sendall(content[100:])
        if length:
            return b""
        answer = bytearray()
        while piece := line.recv(2**16):
            answer += piece
    return bytes(answer)


@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 2**20 + 1, 2**21, 2**21 + 1, SIZE])
@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_a_large_body_is_kept_and_its_connection_closed(plain: ServerProcess, size: int, pause: float) -> None:
    if size < 2**20:
        api.save(plain, "small", {"weights": (body := os.urandom(size))})
    else:
        answer = put(plain, (body := os.urandom(size)), pause=pause)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()

    assert api.announce(plain, api.create(plain, "again"), "w", body)["uploadUrl"] is None


def test_a_large_body_that_is_not_the_announced_one_is_refused(plain: ServerProcess) -> None:
    announced, sent = os.urandom(SIZE), os.urandom(SIZE)
    node = api.announce(plain, api.create(plain, "other"), "w", announced)

    assert api.put(plain, node["uploadUrl"], sent) == 400
    assert api.announce(plain, api.create(plain, "other"), "w", announced)["uploadUrl"]


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(plain: ServerProcess, content: bytes) -> None:
    incoming = plain.data_dir / "incoming"

    for _ in range(5):
        put(plain, os.urandom(3 * 2**20), length=SIZE)

    deadline = time.monotonic() + 20
    while any(incoming.iterdir()):
        assert time.monotonic() < deadline, "an upload that nobody finishes is still there"
        time.sleep(0.02)
    assert plain.request("GET", "/healthz")[0] == 200


def test_many_large_bodies_at_once_are_each_kept_whole(plain: ServerProcess) -> None:
    bodies = [os.urandom(2**20 + number * 100_003) for number in range(24)]

    with ThreadPoolExecutor(12) as clients:
        # The pause keeps all twelve under way: some with the large buffers, some with the small ones.
        answers = list(clients.map(lambda body: put(plain, body, pause=0.2), bodies))

    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    for body in bodies:
        assert api.announce(plain, api.create(plain, "many"), "w", body)["uploadUrl"] is None


def test_a_short_answer_is_not_held_back_until_the_one_before_is_acknowledged() -> None:
    """A delay would be 40 ms each: a response is two packets, and a client acknowledges the first with its next request."""

    async def accepted() -> bool:
        delays: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        class Connection(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                line = transport.get_extra_info("socket")
                delays.set_result(not line.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                transport.close()

        with listening("127.0.0.1", 0) as listener:
            async with await asyncio.get_running_loop().create_server(Connection, sock=listener):
                with socket.create_connection(listener.getsockname()):
                    return await delays

    assert not asyncio.run(accepted())
