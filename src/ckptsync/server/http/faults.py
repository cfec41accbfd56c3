"""Faults on demand, for tests: an ASGI middleware apart from the real code, there only with `--faults`.

`POST /_faults` takes a list of rules `{"match": {"path", "operation", "method"}, "skip", "count", "action"}`; the first rule that
matches a request, is past its `skip` and has hits left acts on it. `GET /_faults` lists the rules with how often each one matched
and hit; `DELETE /_faults` removes them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ckptsync.server.graphql.execution import operation_name
from ckptsync.server.http.auth import is_authorized

PATH = "/_faults"
MAX_BODY_BYTES = 32 * 1024 * 1024
ACTIONS = {"status", "headers", "delay", "throttle", "drop", "corrupt", "graphql_errors"}


HANG_UP = "ckptsync.hang_up"


class InvalidRuleError(ValueError):
    """A rule that cannot be understood; the message says which."""


@dataclass(slots=True)
class Rule:
    """One fault: which requests, how many of them, and what happens to them."""

    match: Mapping[str, str]
    action: Mapping[str, Any]
    skip: int = 0
    count: int | None = None
    matched: int = 0
    hits: int = 0

    @classmethod
    def parse(cls, given: Any) -> Rule:
        if not isinstance(given, dict) or not isinstance(given.get("action"), dict) or not given["action"]:
            raise InvalidRuleError("a rule needs an action")
        match = given.get("match") or {}
        unknown = ({*given} - {"match", "skip", "count", "action"}) | ({*match} - {"path", "operation", "method"})
        unknown |= {*given["action"]} - ACTIONS
        if unknown:
            raise InvalidRuleError(f"unknown in a rule: {', '.join(sorted(unknown))}")
        return cls(match, given["action"], given.get("skip", 0), given.get("count"))

    def takes(self, method: str, path: str, operation: str | None) -> bool:
        """Count a request that matches; True when the fault hits it."""
        if not re.search(self.match.get("path", ""), path):
            return False
        if self.match.get("operation", operation) != operation or self.match.get("method", method) != method:
            return False
        self.matched += 1
        if self.matched <= self.skip or (self.count is not None and self.hits >= self.count):
            return False
        self.hits += 1
        return True

    def shown(self) -> dict[str, Any]:
        return {"match": dict(self.match), "action": dict(self.action), "matched": self.matched, "hits": self.hits}


@dataclass(frozen=True, slots=True)
class Line:
    """The outermost ASGI layer: gives the scope a function that closes the connection, which ASGI itself doesn't offer."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # uvicorn's send is a method of the object that holds the connection.
        transport = getattr(getattr(send, "__self__", None), "transport", None)
        if transport is not None:
            scope[HANG_UP] = transport.close
        await self.app(scope, receive, send)


@dataclass(slots=True)
class Faults:
    """The middleware and the endpoint that scripts it."""

    app: ASGIApp
    key: str
    rules: list[Rule] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"] == PATH:
            await self._script(scope, receive, send)
        elif self.rules:
            await self._maybe_fail(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _script(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_authorized(Headers(scope=scope), self.key):
            await _answer(send, 401, {"errors": [{"message": "the API key is not valid for this server"}]})
            return
        try:
            if scope["method"] == "POST":
                given = json.loads(await _body(receive))
                self.rules.extend([Rule.parse(rule) for rule in given])
            elif scope["method"] == "DELETE":
                self.rules.clear()
        except (ValueError, TypeError) as error:
            await _answer(send, 400, {"errors": [{"message": str(error)}]})
            return
        await _answer(send, 200, [rule.shown() for rule in self.rules])

    async def _maybe_fail(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = None
        if scope["path"] == "/graphql":
            body = await _body(receive)
            operation = _note_operation(scope, body)
            receive = _replay(body, receive)
        rule = next((rule for rule in self.rules if rule.takes(scope["method"], scope["path"], operation)), None)
        if rule is None:
            await self.app(scope, receive, send)
        else:
            await _act(rule.action, self.app, scope, receive, send)


async def _act(action: Mapping[str, Any], app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Do what the action says: first wait, then fail or let the application answer through a faulty line."""
    if "delay" in action:
        await asyncio.sleep(action["delay"])
    drop = action.get("drop")
    if drop == "before":
        await _hang_up(scope, receive)
        return
    if "status" in action:
        await _drain(receive)
        await _answer(send, action["status"], {"errors": [{"message": "injected"}]}, action.get("headers"))
        return
    if "graphql_errors" in action:
        await _answer(send, 200, {"data": None, "errors": [{"message": action["graphql_errors"]}]})
        return
    if drop == "after":
        await app(scope, receive, _discard)
        await _hang_up(scope, receive)
        return
    if drop == "during":
        receive, send = _cut_receive(scope, receive), _cut_send(scope, receive, send)
    if action.get("corrupt"):
        send = _corrupt_send(send)
    if "throttle" in action:
        receive, send = _slow_receive(receive, action["throttle"]), _slow_send(send, action["throttle"])
    await app(scope, receive, send)


async def _hang_up(scope: Scope, receive: Receive) -> None:
    """Close the connection and wait until the server has noticed: it would send an answer of its own otherwise."""
    scope[HANG_UP]()
    while (await receive())["type"] != "http.disconnect":
        pass


def _note_operation(scope: Scope, body: bytes) -> str | None:
    """What a GraphQL request asks for, noted for the request log in case the application never sees it."""
    try:
        request = json.loads(body)
    except ValueError:
        return None
    scope["ckptsync.operation"] = operation_name(request)
    scope["ckptsync.variables"] = request.get("variables") if isinstance(request, dict) else None
    return operation_name(request)


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body") or sum(map(len, parts)) > MAX_BODY_BYTES:
            return b"".join(parts)


async def _drain(receive: Receive) -> None:
    """Take the rest of the body, or the client would see a broken connection in place of the status."""
    while (await receive()).get("more_body"):
        pass


def _replay(body: bytes, receive: Receive) -> Receive:
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replayed() -> Message:
        return next(messages, None) or await receive()

    return replayed


async def _answer(send: Send, status: int, answer: Any, headers: Mapping[str, str] | None = None) -> None:
    body = json.dumps(answer).encode()
    shown = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    raw = [(name.lower().encode(), str(value).encode()) for name, value in shown.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def _discard(_message: Message) -> None:
    pass


def _content_length(headers: Any) -> int:
    return next((int(value) for name, value in headers if name.lower() == b"content-length"), 0)


def _cut_receive(scope: Scope, receive: Receive) -> Receive:
    """An upload's body up to its half; then the connection breaks. Other requests break in their answer."""
    half = _content_length(scope["headers"]) // 2
    seen = 0

    async def cut() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if half and scope["method"] == "PUT" and seen >= half:
            await _hang_up(scope, receive)
            return {"type": "http.disconnect"}
        return message

    return cut


def _cut_send(scope: Scope, receive: Receive, send: Send) -> Send:
    """The answer's body up to its half; then the connection breaks."""
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
            await _hang_up(scope, receive)
            return
        left -= len(body)
        await send(message)

    return cut


def _corrupt_send(send: Send) -> Send:
    """The answer with the first byte of its body flipped."""
    done = False

    async def corrupted(message: Message) -> None:
        nonlocal done
        body = message.get("body", b"")
        if message["type"] == "http.response.body" and body and not done:
            done = True
            message = {**message, "body": bytes([body[0] ^ 0xFF]) + body[1:]}
        await send(message)

    return corrupted


def _slow_receive(receive: Receive, bytes_per_second: float) -> Receive:
    async def slow() -> Message:
        message = await receive()
        await asyncio.sleep(len(message.get("body", b"")) / bytes_per_second)
        return message

    return slow


def _slow_send(send: Send, bytes_per_second: float) -> Send:
    """The answer in pieces of a tenth of a second each."""
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
