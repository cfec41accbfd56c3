"""Signed links: whoever has one may PUT or GET exactly one path until it expires. Does no I/O."""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass
from urllib.parse import quote, urlencode


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs and checks (method, path, expiry) with a secret that never leaves the server."""

    secret: bytes

    def signature(self, method: str, path: str, expires: int) -> str:
        message = f"{method}\n{path}\n{expires}".encode()
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()

    def allows(self, method: str, path: str, expires: str, signature: str, now: float) -> bool:
        """True if this server signed exactly this request and it has not expired."""
        if not (expires.isascii() and expires.isdigit()):
            return False
        expected = self.signature(method, path, int(expires))
        return hmac.compare_digest(expected.encode(), signature.encode()) and now < int(expires)


@dataclass(frozen=True, slots=True)
class Links:
    """Creates the signed URLs of one response. They start with the address that its client used."""

    signer: Signer
    base_url: str
    lifetime: float

    def put(self, path: str) -> str:
        return self._link("PUT", path)

    def get(self, path: str) -> str:
        return self._link("GET", path)

    def _link(self, method: str, path: str) -> str:
        expires = int(time.time() + self.lifetime)
        query = urlencode({"expires": expires, "signature": self.signer.signature(method, path, expires)})
        return f"{self.base_url}{quote(path)}?{query}"
