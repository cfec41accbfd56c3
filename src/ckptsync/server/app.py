"""Runs the server on its data folder: one process at a time, announced in server.json, cleaned up at start and every hour."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from ckptsync.errors import ConfigurationError, LockedError
from ckptsync.server.cleanup import sweep_content, sweep_expired
from ckptsync.server.http.auth import OriginGuard, api_key, own_names, signing_secret
from ckptsync.server.http.faults.connection import Disconnectable
from ckptsync.server.http.faults.middleware import Faults
from ckptsync.server.http.request_log import RequestLog
from ckptsync.server.http.routes import routes
from ckptsync.server.local import LAST_PORT, USERS
from ckptsync.server.resolvers.service import Service
from ckptsync.server.storage.content_store import Content
from ckptsync.server.storage.database import Database
from ckptsync.server.transfers.signing import Signer
from ckptsync.server.transfers.zero_copy import ZeroCopy

log = logging.getLogger(__name__)

DEFAULT_PORT = 8787
CRASH_SECONDS = 300.0
LINK_SECONDS = 24 * 60 * 60.0
SWEEP_SECONDS = 3600.0
GRACE_SECONDS = 5


def serve(
    data_dir: Path,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    faults: bool = False,
    crash_after: float = CRASH_SECONDS,
    link_lifetime: float = LINK_SECONDS,
    log_requests: Path | None = None,
    until_unused: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM, or with `until_unused` until no client is left. Port 0 picks a free one; see server.json.

    Raises LockedError if another server holds the data folder, ConfigurationError if the address cannot be used.
    """
    # An existing folder keeps its mode. Whatever is written into it is readable only by its owner.
    os.umask(0o077)
    data_dir.mkdir(parents=True, exist_ok=True)
    with _held(data_dir), listening(host, port) as listener:
        service = _service(data_dir, crash_after, link_lifetime)
        app = _application(service, api_key(data_dir), host, faults=faults, log_requests=log_requests)
        server = _Server(_uvicorn_config(app), data_dir, _url(host, listener))
        with _swept(service):
            if until_unused:
                threading.Thread(target=_stop_when_unused, args=(server, data_dir), daemon=True).start()
            server.run(sockets=[listener])


@contextlib.contextmanager
def _held(data_dir: Path) -> Iterator[None]:
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"another server holds {data_dir}", hint="Use that server, stop it, or choose another --data-dir."
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to the address; port 0 picks a free one. Raises ConfigurationError if the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on a socket whose protocol is named. Without it each response is delayed by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with contextlib.closing(listener):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host} port {port}: {error.strerror}", hint="Choose another --host or --port."
            ) from None
        yield listener


def _url(host: str, listener: socket.socket) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - compared only
    shown = f"[{reachable}]" if ":" in reachable else reachable
    return f"http://{shown}:{listener.getsockname()[1]}"


def _service(data_dir: Path, crash_after: float, link_lifetime: float) -> Service:
    content = Content(data_dir)
    database = Database(data_dir / "server.db")
    content.sweep_incoming()
    sweep_content(database, content)
    signer = Signer(signing_secret(data_dir))
    return Service(database, content, signer, crash_after, link_lifetime)


def _application(service: Service, key: str, host: str, *, faults: bool, log_requests: Path | None) -> ASGIApp:
    app: ASGIApp = Starlette(routes=routes(service, key))
    if faults:
        app = Faults(app, key)
    app = OriginGuard(app, own_names(host), any_address=host in ("0.0.0.0", "::", ""))  # noqa: S104 - compared only
    if log_requests is not None:
        app = RequestLog(app, log_requests)
    # Faults change the bytes of a response, so these have to pass through Python.
    return Disconnectable(app) if faults else ZeroCopy(app)


def _uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        # wandb-core keeps connections open for longer than uvicorn's 5 s and would write to one that is being closed.
        timeout_keep_alive=120,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


class _Server(uvicorn.Server):
    """Writes server.json once it listens and removes it when it stops."""

    def __init__(self, config: uvicorn.Config, data_dir: Path, url: str) -> None:
        super().__init__(config)
        self._record = data_dir / "server.json"
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        record = {"version": 1, "pid": os.getpid(), "url": self._url, "started_at": time.time()}
        temporary = self._record.with_name(f"server.json.{secrets.token_hex(8)}")
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.rename(self._record)
        self._record.with_name(LAST_PORT).write_text(str(urlsplit(self._url).port), encoding="ascii")
        log.info("listening", extra={"url": self._url})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._record.unlink(missing_ok=True)
        await super().shutdown(sockets)


def _stop_when_unused(server: uvicorn.Server, data_dir: Path) -> None:
    """Wait until the process that started this one exits, which closes stdin, and then until all other clients have exited."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    # Held until this process exits: a client that arrives now waits for that and then starts a server of its own.
    users = os.open(data_dir / USERS, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(users, fcntl.LOCK_EX)
    server.should_exit = True


@contextlib.contextmanager
def _swept(service: Service) -> Iterator[None]:
    """Delete expired versions and stale uploads now and every hour."""
    stop = threading.Event()

    def sweep() -> None:
        while True:
            try:
                sweep_expired(service)
            except Exception:
                log.exception("clean-up failed")
            if stop.wait(SWEEP_SECONDS):
                return

    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
