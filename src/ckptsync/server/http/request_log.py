"""Logs one JSON line per request, without keys, signatures or long values."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ckptsync.server.transfers.zero_copy import EXTENSION

MAX_VALUE = 200
SECRET_NAME = re.compile(r"key|token|secret|password", re.IGNORECASE)


def trimmed(value: Any, depth: int = 0) -> Any:
    """A value fit for a log: long strings and lists are cut, values named like a secret are masked."""
    if isinstance(value, str):
        return value if len(value) <= MAX_VALUE else f"{value[:MAX_VALUE]}… ({len(value)} characters)"
    if isinstance(value, dict) and depth < 6:
        return {name: "***" if SECRET_NAME.search(str(name)) else trimmed(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list) and depth < 6:
        cut = [trimmed(item, depth + 1) for item in value[:20]]
        return cut if len(value) <= 20 else [*cut, f"… ({len(value)} items)"]
    return value if value is None or isinstance(value, (bool, int, float)) else "…"


@dataclass(slots=True)
class RequestLog:
    """ASGI middleware. Inner layers may set `ckptsync.operation`, `ckptsync.variables` and `ckptsync.received` in the scope."""

    app: ASGIApp
    path: Path
    _file: TextIO = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.path.touch(mode=0o600)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        entry: dict[str, Any] = {"time": time.time(), "method": scope["method"], "path": scope["path"]}
        status: int | None = None
        counts = {"received": 0, "sent": 0}

        async def counting_receive() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                counts["received"] += len(message.get("body", b""))
            return message

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                counts["sent"] += len(message.get("body", b""))
            elif message["type"] == EXTENSION:
                counts["sent"] += message["count"]
            await send(message)

        # Inner layers get the same dict, so what they add to it can be read here.
        try:
            await self.app(scope, counting_receive, counting_send)
        finally:
            entry |= {
                "operation": scope.get("ckptsync.operation"),
                "variables": trimmed(scope.get("ckptsync.variables")),
                "seconds": round(time.time() - entry["time"], 6),
                "status": status,
                **counts,
                "received": scope.get("ckptsync.received", counts["received"]),
            }
            with self._lock:
                self._file.write(json.dumps(entry) + "\n")
