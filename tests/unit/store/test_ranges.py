"""Downloads from a real server on this machine that answers as it is told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from ckptsync.errors import CkptsyncError, IntegrityError, NotFoundError, TransientStoreError
from ckptsync.store import ranges

SMALL = bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Serves `content`; `behaviour` says how. `asked` has the Range header of each request, or None."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = SMALL
        self.behaviour = "well"
        self.asked: list[str | None] = []

    def handle_error(self, *arguments: Any) -> None:
        """A client that hangs up in the middle is what some tests are about."""

    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file?X-Signature=hidden"


class Handler(BaseHTTPRequestHandler):
    """One request. Each fault is named by the server's `behaviour`."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        if self.server.behaviour == "redirect" and not self.path.startswith("/moved"):
            self._answer(302, b"", Location="/moved")
            return
        self.server.asked.append(span)
        if self.server.behaviour.isdigit():
            self._answer(int(self.server.behaviour), b"injected: refused")
            return
        body, status = self.server.content, 200
        if span and self.server.behaviour != "ignores ranges":
            first, last = span.removeprefix("bytes=").split("-")
            body, status = body[int(first) : int(last) + 1], 206
        self._answer(status, body)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        length = len(body)
        if self.server.behaviour == "cut":
            body = body[: length // 2]
        elif self.server.behaviour == "says less":
            body, length = body[:-1], length - 1
        elif self.server.behaviour == "says more":
            body, length = body + b"x", length + 1
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        # Or the thread of a connection that the client keeps would never end.
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


class Download:
    """One download with what it reported."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.arrived = 0
        self._lock = threading.Lock()

    def __call__(self, server: Server, size: int | None = None) -> None:
        with requests.Session() as session, ThreadPoolExecutor(4) as pool:
            session.trust_env = False
            size = len(server.content) if size is None else size
            ranges.download(session, server.url, self.target, size, pool=pool, arrived=self._note)

    def _note(self, count: int) -> None:
        with self._lock:
            self.arrived += count


@pytest.fixture
def download(tmp_path: Path) -> Download:
    return Download(tmp_path / "below" / "file.bin")


def large() -> bytes:
    """Two ranges and a bit."""
    return bytes(2 * ranges.RANGE) + b"the last bytes"


def test_the_spans_cover_a_file_without_gap_or_overlap() -> None:
    for size in (0, 1, ranges.RANGE - 1, ranges.RANGE, ranges.RANGE + 1, 3 * ranges.RANGE + 7):
        spans = list(ranges.spans(size))

        assert sum(end - start for start, end in spans) == size
        assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]


def test_a_small_file_comes_in_one_plain_request(server: Server, download: Download) -> None:
    download(server)

    assert download.target.read_bytes() == SMALL
    assert download.arrived == len(SMALL)
    assert server.asked == [None]


def test_a_large_file_comes_in_ranges(server: Server, download: Download) -> None:
    server.content = large()

    download(server)

    assert download.target.read_bytes() == server.content
    assert download.arrived == len(server.content)
    assert len(server.asked) == 3
    assert None not in server.asked


def test_an_empty_file_needs_no_request(server: Server, download: Download) -> None:
    server.content = b""

    download(server)

    assert download.target.read_bytes() == b""
    assert server.asked == []


def test_a_redirect_is_followed(server: Server, download: Download) -> None:
    server.behaviour = "redirect"

    download(server)

    assert download.target.read_bytes() == SMALL


def test_what_was_there_before_is_replaced_even_when_it_was_longer(server: Server, download: Download) -> None:
    download.target.parent.mkdir()
    download.target.write_bytes(b"old" * len(SMALL))

    download(server)

    assert download.target.read_bytes() == SMALL


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ("cut", TransientStoreError),
        ("says less", TransientStoreError),
        ("says more", IntegrityError),
        ("403", TransientStoreError),
        ("401", TransientStoreError),
        ("429", TransientStoreError),
        ("500", TransientStoreError),
        ("503", TransientStoreError),
        ("404", NotFoundError),
        ("410", NotFoundError),
    ],
)
def test_each_failure_says_whether_trying_again_can_help_and_shows_no_address(
    server: Server, download: Download, behaviour: str, expected: type[CkptsyncError]
) -> None:
    server.behaviour = behaviour

    with pytest.raises(expected) as raised:
        download(server)

    assert type(raised.value) is expected
    assert "hidden" not in str(raised.value)


def test_where_a_proxy_strips_the_range_the_file_comes_in_one_plain_request(server: Server, download: Download) -> None:
    server.content = large()
    server.behaviour = "ignores ranges"

    download(server)

    assert download.target.read_bytes() == server.content
    assert server.asked[-1] is None


def test_a_server_that_is_gone_is_transient(download: Download) -> None:
    with Server() as gone:
        pass

    with pytest.raises(TransientStoreError):
        download(gone)


def test_a_symbolic_link_in_the_place_of_the_file_is_not_followed(server: Server, download: Download, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    download.target.parent.mkdir()
    download.target.symlink_to(precious)

    with pytest.raises(OSError, match="symbolic links"):
        download(server)

    assert precious.read_text() == "precious"


class Noted:
    """Downloads with a note of what is finished, and what the hasher was shown."""

    def __init__(self, target: Path, server: Server, mark: str = "digest") -> None:
        self.target = target
        self.note = ranges.Finished.of(target, len(server.content), mark)
        self.shown = bytearray()
        self._server = server

    def __call__(self) -> None:
        with requests.Session() as session, ThreadPoolExecutor(4) as pool:
            session.trust_env = False
            self.shown.clear()
            ranges.download(
                session,
                self._server.url,
                self.target,
                len(self._server.content),
                pool=pool,
                arrived=lambda _: None,
                seen=self.shown.extend,
                finished=self.note,
            )


def test_every_byte_is_shown_in_order(server: Server, tmp_path: Path) -> None:
    server.content = large()
    noted = Noted(tmp_path / "file.bin", server)

    noted()

    assert bytes(noted.shown) == server.content
    assert noted.note.starts() == {0, ranges.RANGE, 2 * ranges.RANGE}


def test_ranges_that_are_finished_are_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.content = large()
    noted = Noted(tmp_path / "file.bin", server)
    noted()
    noted.note.path.write_text(noted.note.head + f"{ranges.RANGE}\n{2 * ranges.RANGE}\n12")
    before = len(server.asked)

    noted()

    assert server.asked[before:] == [f"bytes=0-{ranges.RANGE - 1}"]
    assert bytes(noted.shown) == server.content


def test_a_note_of_another_content_counts_for_nothing(server: Server, tmp_path: Path) -> None:
    server.content = large()
    Noted(tmp_path / "file.bin", server, "older")()
    before = len(server.asked)

    Noted(tmp_path / "file.bin", server, "newer")()

    assert len(server.asked[before:]) == 3


def test_a_note_beside_a_file_of_another_size_counts_for_nothing(server: Server, tmp_path: Path) -> None:
    server.content = large()
    noted = Noted(tmp_path / "file.bin", server)
    noted()
    noted.target.write_bytes(b"short")

    noted()

    assert noted.target.read_bytes() == server.content
