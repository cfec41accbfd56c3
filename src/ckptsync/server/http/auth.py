"""Authorizes requests: checks the API key, and rejects requests that a web page sent through a user's browser."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import json
import os
import re
import secrets
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

API_KEY = re.compile(r"[0-9a-f]{40}")
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def _kept_secret(path: Path, make: str) -> str:
    """The secret in a file that only its owner can read. Creates it, durably, if it does not exist."""
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        pass
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(make + "\n")
        file.flush()
        os.fsync(descriptor)
    temporary.rename(path)
    return make


def api_key(data_dir: Path) -> str:
    """The server's API key. Like W&B's, it has 40 hexadecimal characters."""
    return _kept_secret(data_dir / "api-key", secrets.token_hex(20))


def signing_secret(data_dir: Path) -> bytes:
    """The secret that signs links. It is stored, so links stay valid across a restart."""
    return bytes.fromhex(_kept_secret(data_dir / "signing-secret", secrets.token_hex(32)))


def presented_key(authorization: str | None) -> str:
    """The key in an Authorization header: `Basic` with any user name, or `Bearer`. Empty if there is none."""
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def is_authorized(headers: Headers, key: str) -> bool:
    return hmac.compare_digest(presented_key(headers.get("authorization")).encode(), key.encode())


def own_names(host: str) -> frozenset[str]:
    """The host names that clients may use for a server that listens on `host`."""
    names = {host.lower(), *LOOPBACK_NAMES}
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        names.add(socket.gethostname().lower())
    return frozenset(names)


@dataclass(frozen=True, slots=True)
class OriginGuard:
    """Rejects requests that a web page could send through a user's browser: a foreign Origin, or a Host that isn't ours.

    A foreign Host means DNS rebinding: a foreign name that resolves to our address. A literal address cannot be rebound, so
    with `any_address` (the server listens on all addresses) every literal address is accepted.
    """

    app: ASGIApp
    names: Collection[str]
    any_address: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            await _refuse(send, 421, "this server does not answer to that host name")
        elif "origin" in headers and headers["origin"] != f"http://{host}":
            await _refuse(send, 403, "requests from other origins are refused")
        else:
            await self.app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return name in self.names or (self.any_address and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps({"errors": [{"message": message}]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
