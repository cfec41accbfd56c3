"""Faults on demand, for tests: an ASGI middleware apart from the real code, there only with `--faults`.

`POST /_faults` takes a list of rules `{"match": {"path", "operation", "method"}, "skip", "count", "action"}`; the first rule that
matches a request, is past its `skip` and has hits left acts on it. `GET /_faults` lists the rules with how often each one matched
and hit; `DELETE /_faults` removes them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ckptsync.server.graphql.execution import operation_name
from ckptsync.server.http.auth import is_authorized
from ckptsync.server.http.faults.connection import (
    corrupt_send,
    cut_receive,
    cut_send,
    discard,
    hang_up,
    slow_receive,
    slow_send,
)
from ckptsync.server.http.faults.rules import Rule

PATH = "/_faults"
MAX_BODY_BYTES = 32 * 1024 * 1024


@dataclass(slots=True)
class Faults:
    """The middleware, and the endpoint at which tests set its rules."""

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
    """Apply an action: wait if it says so, then fail or let the application respond over a faulty connection."""
    if "delay" in action:
        await asyncio.sleep(action["delay"])
    drop = action.get("drop")
    if drop == "before":
        await hang_up(scope, receive)
        return
    if "status" in action:
        await _drain(receive)
        await _answer(send, action["status"], {"errors": [{"message": "injected"}]}, action.get("headers"))
        return
    if "graphql_errors" in action:
        await _answer(send, 200, {"data": None, "errors": [{"message": action["graphql_errors"]}]})
        return
    if drop == "after":
        await app(scope, receive, discard)
        await hang_up(scope, receive)
        return
    if drop == "during":
        receive, send = cut_receive(scope, receive), cut_send(scope, receive, send)
    if action.get("corrupt"):
        send = corrupt_send(send)
    if "throttle" in action:
        receive, send = slow_receive(receive, action["throttle"]), slow_send(send, action["throttle"])
    await app(scope, receive, send)


def _note_operation(scope: Scope, body: bytes) -> str | None:
    """The operation of a GraphQL request, also recorded for the request log in case the application never sees it."""
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
    """Read the rest of the body, or the client would see a broken connection instead of the status."""
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
