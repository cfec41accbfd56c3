"""ASGI's Zero Copy Send extension for uvicorn, which has none (0.54): the kernel copies a file's bytes to the socket.

That takes a fraction of the CPU time of reading and writing them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from ckptsync.server.transfers.direct_body import BODY, DirectBody

EXTENSION = "http.response.zerocopysend"

PIECE = 4 * 2**20
"""Bytes per sendfile call. More would let one fast client block all others."""


@dataclass(frozen=True, slots=True)
class ZeroCopy:
    """The outermost ASGI layer: uvicorn itself has to call it, with h11."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # uvicorn's send is a method of the object that holds the connection.
        cycle = getattr(send, "__self__", None)
        if scope["type"] != "http" or not isinstance(cycle, RequestResponseCycle) or scope["scheme"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("extensions", {})[EXTENSION] = {}
        scope["extensions"][BODY] = partial(DirectBody.of, scope, cycle)

        async def sending(message: Message) -> None:
            if message["type"] == EXTENSION:
                await _send_file(cycle, message)
            else:
                await send(message)

        await self.app(scope, receive, sending)


@dataclass(frozen=True, slots=True)
class _Bytes(Sized):
    """A placeholder of that length: h11 only counts the bytes of a body."""

    count: int

    def __len__(self) -> int:
        return self.count


async def _send_file(cycle: RequestResponseCycle, message: Message) -> None:
    """Send `count` bytes of `file` from `offset` on. More body may follow. A client that disconnects is no error."""
    file, offset, count = message["file"], message["offset"], message["count"]
    loop = asyncio.get_running_loop()
    end = offset + count
    while offset < end:
        size = min(PIECE, end - offset)
        await cycle.flow.drain()
        if cycle.disconnected or cycle.transport.is_closing():
            return
        # The kernel reads the next piece from disk while this one is sent.
        os.posix_fadvise(file.fileno(), offset + size, PIECE, os.POSIX_FADV_WILLNEED)
        placeholder: Any = _Bytes(size)
        cycle.conn.send_with_data_passthrough(h11.Data(data=placeholder))
        try:
            sent = await loop.sendfile(cycle.transport, file, offset, size)
        except ConnectionError:
            return
        if sent != size:
            raise OSError("a content file became shorter")
        offset += size
