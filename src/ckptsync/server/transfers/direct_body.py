"""A request's body straight from the socket into two buffers that are used in turn, past uvicorn and h11.

On its way through them every byte is copied five times into memory that is new each time: 3.4 s of processor time for a gigabyte,
of which hashing and writing were 0.4 (uvicorn 0.54, measured). uvicorn offers no extension for it; `BODY` in the scope's
extensions is ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar, cast

from starlette.requests import ClientDisconnect
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

BODY = "ckptsync.body"
BUFFER, SMALL_BUFFER = 2 * 2**20, 2**19
"""Bytes handed on at once. With 2 MiB, 2 GB take 1.5 s of processor time, with 512 KiB 2.6 s (measured)."""

FEW = 8
"""How many bodies get large buffers: 50 at once would take 200 MB."""

WORTH_IT = 2**20
"""Bytes from which on it pays: afterwards the connection is closed, since h11 knows nothing of what went past it."""


class DirectBody(asyncio.BufferedProtocol):
    """Stands in uvicorn's place at the connection until the body is there. To be iterated once."""

    under_way: ClassVar[int] = 0

    def __init__(self, cycle: RequestResponseCycle, length: int) -> None:
        self._cycle = cycle
        self._transport = cycle.transport
        self._uvicorns = cycle.transport.get_protocol()
        self._left = length
        self._buffers: list[memoryview] = []
        self._filled = 0
        self._ready = asyncio.Event()
        self._lost = False

    @classmethod
    def of(cls, scope: Scope, cycle: RequestResponseCycle) -> DirectBody | None:
        """For a request whose body is large and still on its way; None for any other. Nothing may have been received of it."""
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if not length.isdigit() or int(length) < WORTH_IT or not cycle.more_body or cycle.waiting_for_100_continue:
            return None
        return cls(cycle, int(length))

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        """The body in pieces. Each is good until the piece after the next one is asked for. Raises ClientDisconnect."""
        if self._cycle.disconnected or self._transport.is_closing():
            raise ClientDisconnect
        size = BUFFER if DirectBody.under_way < FEW else SMALL_BUFFER
        self._buffers = [memoryview(bytearray(size)) for _ in range(2)]
        first = memoryview(bytes(self._cycle.body))
        self._left -= len(first)
        self._cycle.body.clear()
        self._transport.set_protocol(self)
        # The answer ends the connection, whatever it is.
        self._cycle.keep_alive = False
        DirectBody.under_way += 1
        try:
            yield first
            while self._left or self._filled:
                # Only now: whoever has the piece before the last one is done with it, and that is where the next bytes go.
                if not self._ready.is_set():
                    self._transport.resume_reading()
                await self._ready.wait()
                if self._lost:
                    raise ClientDisconnect
                self._ready.clear()
                full = self._buffers[0][: self._filled]
                self._buffers.reverse()
                self._filled = 0
                yield full
        finally:
            DirectBody.under_way -= 1
            self._transport.set_protocol(self._uvicorns)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._buffers[0][self._filled : self._filled + self._left]

    def buffer_updated(self, nbytes: int) -> None:
        """So many came. A full buffer waits until it is asked for."""
        self._filled += nbytes
        self._left -= nbytes
        if not self._left or self._filled == len(self._buffers[0]):
            self._transport.pause_reading()
            self._ready.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone; uvicorn has to know too."""
        self._lost = True
        self._ready.set()
        self._uvicorns.connection_lost(exc)

    def pause_writing(self) -> None:
        """For uvicorn, which writes the answer."""
        cast(asyncio.Protocol, self._uvicorns).pause_writing()

    def resume_writing(self) -> None:
        """For uvicorn, which writes the answer."""
        cast(asyncio.Protocol, self._uvicorns).resume_writing()
