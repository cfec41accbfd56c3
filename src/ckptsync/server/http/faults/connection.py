"""Faulty connections: wrappers for ASGI's receive and send that break, corrupt or throttle what passes through them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HANG_UP = "ckptsync.hang_up"


@dataclass(frozen=True, slots=True)
class Disconnectable:
    """The outermost ASGI layer. Adds a function that closes the connection to the scope, since ASGI itself has none."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # uvicorn's send is a method of the object that holds the connection.
        transport = getattr(getattr(send, "__self__", None), "transport", None)
        if transport is not None:
            scope[HANG_UP] = transport.close
        await self.app(scope, receive, send)


async def hang_up(scope: Scope, receive: Receive) -> None:
    """Close the connection and wait until uvicorn has noticed: otherwise it would send a response of its own."""
    scope[HANG_UP]()
    while (await receive())["type"] != "http.disconnect":
        pass


async def discard(_message: Message) -> None:
    pass


def _content_length(headers: Any) -> int:
    return next((int(value) for name, value in headers if name.lower() == b"content-length"), 0)


def cut_receive(scope: Scope, receive: Receive) -> Receive:
    """Break the connection after half of an upload's body. Other requests break in their response."""
    half = _content_length(scope["headers"]) // 2
    seen = 0

    async def cut() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if half and scope["method"] == "PUT" and seen >= half:
            await hang_up(scope, receive)
            return {"type": "http.disconnect"}
        return message

    return cut


def cut_send(scope: Scope, receive: Receive, send: Send) -> Send:
    """Break the connection after half of the response's body."""
    left = 0
    cut_off = False

    async def cut(message: Message) -> None:
        nonlocal left, cut_off
        if message["type"] == "http.response.start":
            left = _content_length(message["headers"]) // 2
            await send(message)
            return
        body = message.get("body", b"")
        if cut_off:
            return
        if len(body) >= left:
            cut_off = True
            await send({**message, "body": body[:left], "more_body": True})
            await hang_up(scope, receive)
            return
        left -= len(body)
        await send(message)

    return cut


def corrupt_send(send: Send) -> Send:
    """Flip the first byte of the response's body."""
    done = False

    async def corrupted(message: Message) -> None:
        nonlocal done
        body = message.get("body", b"")
        if message["type"] == "http.response.body" and body and not done:
            done = True
            message = {**message, "body": bytes([body[0] ^ 0xFF]) + body[1:]}
        await send(message)

    return corrupted


def slow_receive(receive: Receive, bytes_per_second: float) -> Receive:
    async def slow() -> Message:
        message = await receive()
        await asyncio.sleep(len(message.get("body", b"")) / bytes_per_second)
        return message

    return slow


def slow_send(send: Send, bytes_per_second: float) -> Send:
    """Send the response in pieces, ten per second."""
    piece = max(int(bytes_per_second / 10), 1)

    async def slow(message: Message) -> None:
        body = message.get("body", b"")
        if message["type"] != "http.response.body" or not body:
            await send(message)
            return
        for start in range(0, len(body), piece):
            part = body[start : start + piece]
            more = start + piece < len(body) or message.get("more_body", False)
            await asyncio.sleep(len(part) / bytes_per_second)
            await send({**message, "body": part, "more_body": more})

    return slow
