"""HTTP to a cloud's metadata service, on a link-local address.

Uses http.client because it knows no proxies, which could not reach that address.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

LINK_LOCAL = "http://169.254.169.254"

PROBE_TIMEOUT = 2.0
"""Seconds that a metadata service has to show that it exists. A real one answers within milliseconds."""

ANSWER_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The response of a metadata service. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    text: str


class Endpoint:
    """One metadata service by its address, `http://HOST[:PORT]` or `HOST[:PORT]`."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address if "//" in address else f"http://{address}")
        self._host, self._port = parts.hostname or "", parts.port or 80

    def ask(self, path: str, headers: Mapping[str, str], *, method: str = "GET", timeout: float = ANSWER_TIMEOUT) -> Answer:
        """Send one request on a new connection. Raises OSError if there is no valid HTTP response."""
        # Only here: it costs 20 ms, and every command imports this module for its options.
        # Not `import http.client`: several threads come here first, and the package may not have its submodule yet (CPython).
        from http.client import HTTPConnection, HTTPException

        connection = HTTPConnection(self._host, self._port, timeout=timeout)
        try:
            connection.request(method, path, headers=dict(headers))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, names, response.read().decode("utf-8", "replace").strip())
        except HTTPException as error:
            raise OSError(f"invalid response: {type(error).__name__} {error}") from error
        finally:
            connection.close()


def seconds_until(moment: datetime) -> float:
    """Seconds from now to a moment; 0 if it has passed."""
    return max(0.0, moment.timestamp() - time.time())


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError or TypeError for anything else."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError(f"not a JSON object: {text[:80]!r}")
    return value
