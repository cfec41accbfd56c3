"""A limit on what an upload sends: a proxy on loopback, through which the wandb client goes, lets out so many bytes a second.

The client has no such limit of its own (wandb 0.31). TLS stays between it and the server: the proxy only sees that bytes pass.
Where the environment names a proxy already, this one goes through it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import logging
import secrets
import threading
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit

from ckptsync.errors import ConfigurationError

log = logging.getLogger(__name__)

LARGEST = 2**18
"""Bytes that pass at once, at most."""

SLICE = 0.05
"""Seconds' worth of bytes that pass at once: the less, the evener."""

HEAD = 2**16
"""Bytes that a request's head may have."""

CONNECTING = 30.0
"""Seconds for the line to a server."""

_HOP_BY_HOP = ("connection", "proxy-connection", "proxy-authorization", "keep-alive")


class Throttle:
    """Runs in a thread of its own from `start` to `close`.

    `rate` is asked anew for every piece: bytes a second, None for no limit. `passed` is how many bytes were let out. What a
    client has sent says less: megabytes of each line lie in the system's buffers.
    """

    def __init__(self, rate: Callable[[], float | None], environment: Mapping[str, str]) -> None:
        self._rate = rate
        self._environment = environment
        self._secret = secrets.token_urlsafe(16)
        self._tasks: set[asyncio.Task[None]] = set()
        self._free_at = 0.0
        self._port = 0
        self._server: asyncio.Server | None = None
        self.passed = 0

    def start(self) -> Self:
        """Listen. Raises OSError where no port can be had, and ConfigurationError for a proxy that speaks no HTTP."""
        server = urlsplit(self._environment.get("WANDB_BASE_URL", ""))
        for scheme in ("http", "https"):
            parent = _parent(self._environment, scheme, server.hostname or "")
            if parent and parent.scheme not in ("http", "https"):
                raise ConfigurationError(
                    f"--max-upload-rate cannot go through the {parent.scheme} proxy of the environment",
                    hint="Leave the limit out, or name an http proxy.",
                )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="throttle", daemon=True)
        self._thread.start()
        serving = asyncio.start_server(self._serve, "127.0.0.1", 0, limit=HEAD)
        try:
            self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result()
        except OSError:
            self.close()
            raise
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    def close(self) -> None:
        """Hang up on everybody."""
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def environment(self) -> dict[str, str]:
        """The variables that send a wandb client through here, also to a server on loopback, and nobody who doesn't know them."""
        url = f"http://ckptsync:{self._secret}@127.0.0.1:{self._port}"
        return {"WANDB_HTTP_PROXY": url, "WANDB_HTTPS_PROXY": url}

    async def _hang_up(self) -> None:
        if self._server:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        self._tasks.add(task)
        try:
            await self._request(reader, writer)
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError) as error:
            # The client sees its line closed, says so in its own words, and tries again.
            log.debug("a line through the upload limit ended: %s", error)
        except asyncio.CancelledError:
            # By `close`, which is the end of it: CPython 3.11 prints a traceback for a connection whose task is cancelled.
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request for a line: CONNECT for TLS, else a request with the whole address, after which the line is closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head[:-4].split("\r\n")
        method, target, version = line.split(" ", 2)
        given = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        if not hmac.compare_digest(given.get("proxy-authorization", "").encode(), _basic(f"ckptsync:{self._secret}").encode()):
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        tunnel = method == "CONNECT"
        url = urlsplit(f"//{target}" if tunnel else target)
        if not url.hostname:
            raise ValueError("a request without a host")
        port = url.port or (443 if tunnel else 80)
        parent = _parent(self._environment, "https" if tunnel else "http", url.hostname)
        usual = 443 if parent and parent.scheme == "https" else 80
        at = (parent.hostname, parent.port or usual) if parent else (url.hostname, port)
        out_reader, out_writer = await asyncio.wait_for(
            asyncio.open_connection(*at, limit=LARGEST, ssl=bool(parent and parent.scheme == "https")), CONNECTING
        )
        try:
            ours = [field for field in fields if field.partition(":")[0].strip().lower() not in _HOP_BY_HOP]
            if parent and parent.username:
                credentials = f"{unquote(parent.username)}:{unquote(parent.password or '')}"
                ours.append(f"Proxy-Authorization: {_basic(credentials)}")
            if tunnel and not parent:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                if not tunnel:
                    ours.append("Connection: close")
                    if not parent:
                        target = target.partition("://")[2].partition("/")[2].join(("/", ""))
                out_writer.write("\r\n".join([f"{method} {target} {version}", *ours, "\r\n"]).encode("latin-1"))
            sending = asyncio.create_task(self._pump(reader, out_writer, limited=True))
            sending.add_done_callback(partial(_hang_up_on, out_writer.transport))
            try:
                # The answer's end is the end: whoever has it may leave its own side open.
                await self._pump(out_reader, writer, limited=False)
            finally:
                sending.cancel()
        finally:
            out_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limited: bool) -> None:
        while True:
            rate = self._rate() if limited else None
            piece = await reader.read(LARGEST if rate is None else max(1, min(LARGEST, int(rate * SLICE))))
            if not piece:
                break
            if rate is not None:
                await self._turn(len(piece) / rate)
            writer.write(piece)
            await writer.drain()
            if limited:
                self.passed += len(piece)
        if writer.can_write_eof():
            with contextlib.suppress(OSError):
                writer.write_eof()

    async def _turn(self, seconds: float) -> None:
        """Wait until the pieces before this one have had their time, on whichever line they went."""
        now = self._loop.time()
        begins = max(now, self._free_at)
        self._free_at = begins + seconds
        await asyncio.sleep(self._free_at - now)


def _hang_up_on(transport: asyncio.WriteTransport, done: asyncio.Task[None]) -> None:
    """When a request breaks off, its answer is not to be waited for."""
    if not done.cancelled() and done.exception():
        transport.abort()


def _basic(user_and_password: str) -> str:
    return "Basic " + base64.b64encode(user_and_password.encode()).decode()


def _parent(environment: Mapping[str, str], scheme: str, host: str) -> SplitResult | None:
    """The proxy that the environment names for a host, by the client's own rules: its variables first, then everybody's."""
    url = environment.get(f"WANDB_{scheme.upper()}_PROXY")
    if not url:
        named = {name.lower(): value for name, value in environment.items() if name.lower().endswith("_proxy") and value}
        url = named.get(f"{scheme}_proxy")
        if host == "localhost" or host.startswith("127.") or host == "::1":
            return None
        if urllib.request.proxy_bypass_environment(host, {"no": named.get("no_proxy", "")}):  # type: ignore[attr-defined]
            return None
    if not url:
        return None
    parent = urlsplit(url if "://" in url else f"http://{url}")
    return parent if parent.hostname else None
