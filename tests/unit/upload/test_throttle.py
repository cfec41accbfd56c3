"""The limit on uploads, with real sockets: what passes, at what pace, and for whom."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from ckptsync.errors import ConfigurationError
from ckptsync.upload.throttle import Throttle

MB = 10**6


class Origin(ThreadingHTTPServer):
    """Takes bodies and remembers the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, dict[str, str], int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answers with the body's first bytes."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Origin)
        self.server.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, len(body)))
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[:4])

    def log_message(self, *args: Any) -> None:
        """Nothing: the tests' output is read."""


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def rate() -> dict[str, float | None]:
    return {"now": None}


@pytest.fixture
def throttle(rate: dict[str, float | None]) -> Iterator[Throttle]:
    throttle = Throttle(lambda: rate["now"], {}).start()
    yield throttle
    throttle.close()


def put(throttle: Throttle, url: str, body: bytes, *, tunnel: bool = False) -> bytes:
    """As a client does that has been told of a proxy."""
    proxy, target = urlsplit(throttle.environment()["WANDB_HTTP_PROXY"]), urlsplit(url)
    token = base64.b64encode(f"{proxy.username}:{unquote(proxy.password or '')}".encode()).decode()
    head = {"Proxy-Authorization": f"Basic {token}"}
    connection = http.client.HTTPConnection(proxy.hostname or "", proxy.port, timeout=30)
    if tunnel:
        connection.set_tunnel(target.hostname or "", target.port, head)
        connection.request("PUT", target.path, body)
    else:
        connection.request("PUT", url, body, head)
    answer = connection.getresponse()
    try:
        if answer.status != 200:
            raise ConnectionRefusedError(answer.status)
        return answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("tunnel", [False, True])
def test_a_request_arrives_as_if_nobody_stood_between(origin: Origin, throttle: Throttle, tunnel: bool) -> None:
    assert put(throttle, f"{origin.url}/files/a?b=c", b"body" * MB, tunnel=tunnel) == b"body"

    path, head, length = origin.seen[0]
    assert (path.partition("?")[0], length) == ("/files/a", 4 * MB)
    assert head["host"] == urlsplit(origin.url).netloc
    assert "proxy-authorization" not in head


@pytest.mark.parametrize("tunnel", [False, True])
def test_what_is_sent_takes_its_time_and_all_lines_share_the_rate(
    origin: Origin, throttle: Throttle, rate: dict[str, float | None], tunnel: bool
) -> None:
    rate["now"] = 2 * MB
    started = time.monotonic()

    lines = [threading.Thread(target=put, args=(throttle, origin.url + "/a", bytes(MB)), kwargs={"tunnel": tunnel}) for _ in "ab"]
    for line in lines:
        line.start()
    for line in lines:
        line.join()

    assert time.monotonic() - started >= 0.9
    assert throttle.passed >= 2 * MB


def test_a_limit_that_is_lifted_holds_up_nothing_that_is_under_way(
    origin: Origin, throttle: Throttle, rate: dict[str, float | None]
) -> None:
    rate["now"] = 100_000
    line = threading.Thread(target=put, args=(throttle, origin.url + "/a", bytes(30 * MB)))
    line.start()
    time.sleep(0.3)
    assert line.is_alive()

    rate["now"] = None
    line.join(20)

    assert not line.is_alive(), "at the rate it had it would take five minutes"
    assert origin.seen[0][2] == 30 * MB


def test_who_does_not_know_the_secret_gets_nowhere(origin: Origin, throttle: Throttle) -> None:
    port = urlsplit(throttle.environment()["WANDB_HTTP_PROXY"]).port
    for value in ("", "Proxy-Authorization: Basic Y2twdHN5bmM6\r\n"):
        with socket.create_connection(("127.0.0.1", port or 0), timeout=20) as line:
            line.sendall(f"GET {origin.url}/a HTTP/1.1\r\n{value}\r\n".encode())
            assert line.recv(100).startswith(b"HTTP/1.1 407")
    assert not origin.seen


@pytest.mark.parametrize("request_", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n", b"\x00" * 2**17])
def test_nonsense_ends_the_line_and_nothing_else(origin: Origin, throttle: Throttle, request_: bytes) -> None:
    port = urlsplit(throttle.environment()["WANDB_HTTP_PROXY"]).port
    # A line that is hung up on while it is written to is an error here, of one kind or another.
    with socket.create_connection(("127.0.0.1", port or 0), timeout=20) as line, contextlib.suppress(OSError):
        line.sendall(request_)
        line.shutdown(socket.SHUT_WR)
        assert line.recv(100) == b""

    assert put(throttle, f"{origin.url}/a", b"body") == b"body"


def test_a_server_that_is_not_there_is_a_closed_line(throttle: Throttle) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            put(throttle, url, b"body")


@pytest.mark.parametrize("tunnel", [False, True])
def test_the_proxy_of_the_environment_is_passed_through(origin: Origin, tunnel: bool) -> None:
    asked: list[str] = []
    outer = Throttle(lambda: asked.append("for a piece"), {}).start()
    inner = Throttle(lambda: None, outer.environment()).start()
    try:
        assert put(inner, f"{origin.url}/a", b"body", tunnel=tunnel) == b"body"
    finally:
        inner.close()
        outer.close()

    assert asked
    assert "proxy-authorization" not in origin.seen[0][1]


def test_loopback_is_reached_without_the_proxy_of_everybody(origin: Origin) -> None:
    throttle = Throttle(lambda: None, {"http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "127.0.0.1:9"}).start()
    try:
        assert put(throttle, f"{origin.url}/a", b"body") == b"body"
    finally:
        throttle.close()


def test_closing_hangs_up_on_whoever_is_there(
    origin: Origin, rate: dict[str, float | None], caplog: pytest.LogCaptureFixture
) -> None:
    rate["now"] = 1000
    throttle = Throttle(lambda: rate["now"], {}).start()
    ended: list[Exception] = []

    def send() -> None:
        try:
            put(throttle, f"{origin.url}/a", bytes(MB))
        except (OSError, http.client.HTTPException) as error:
            ended.append(error)

    line = threading.Thread(target=send)
    line.start()
    time.sleep(0.2)
    throttle.close()
    line.join(20)

    assert ended
    assert not caplog.records


@pytest.mark.parametrize("variable", ["https_proxy", "WANDB_HTTP_PROXY"])
def test_a_proxy_that_speaks_no_http_is_refused_with_the_way_out(variable: str) -> None:
    with pytest.raises(ConfigurationError, match="socks5 proxy"):
        Throttle(lambda: None, {variable: "socks5://proxy:1080", "WANDB_BASE_URL": "https://api.wandb.ai"}).start()


def test_a_start_that_fails_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: Any, **__: Any) -> None:
        raise OSError("injected: no descriptors")

    monkeypatch.setattr("asyncio.start_server", refused)
    before = threading.active_count()

    for _ in range(3):
        with pytest.raises(OSError, match="no descriptors"):
            Throttle(lambda: None, {}).start()

    assert threading.active_count() == before
