"""What a resolver works with while it executes one GraphQL operation, and the global ids that clients see."""

from __future__ import annotations

import base64
import binascii
import json
import re
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from graphql import GraphQLError

from ckptsync.server.storage.content_store import Content
from ckptsync.server.transfers.signing import Links

Row = Mapping[str, Any]
Resolver = Callable[..., Any]

RESOLVERS: dict[str, Resolver] = {}


def resolves(*names: str) -> Callable[[Resolver], Resolver]:
    """Make a function the resolver of the fields `Type.field`.

    It is called with the source, the `Call` and the field's arguments in snake_case, `input` as `given` and `id` as `identifier`.
    """

    def register(resolver: Resolver) -> Resolver:
        def resolve(source: Any, info: Any, **arguments: Any) -> Any:
            return resolver(source, info.context, **{argument_name(name): value for name, value in arguments.items()})

        for name in names:
            RESOLVERS[name] = resolve
        return resolver

    return register


@cache
def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def argument_name(name: str) -> str:
    return {"input": "given", "id": "identifier"}.get(name) or snake_case(name)


@dataclass(slots=True)
class Call:
    """One operation: its transaction, the time it started, the content, and the links for its answer."""

    connection: sqlite3.Connection
    content: Content
    links: Links
    now: float
    crash_after: float
    after_commit: list[Callable[[], None]] = field(default_factory=list)

    def rows(self, statement: str, *values: Any) -> list[Row]:
        return [dict(row) for row in self.connection.execute(statement, values)]

    def row(self, statement: str, *values: Any) -> Row | None:
        found = self.connection.execute(statement, values).fetchone()
        return None if found is None else dict(found)

    def one(self, statement: str, *values: Any) -> Row:
        """The row of a statement that always finds one."""
        return dict(self.connection.execute(statement, values).fetchone())

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        return self.connection.execute(statement, values)

    def insert(self, table: str, **columns: Any) -> int:
        names = ", ".join(columns)
        marks = ", ".join("?" * len(columns))
        # Table and column names come from our own calls, never from a client.
        cursor = self.connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(columns.values()))  # noqa: S608
        return int(cursor.lastrowid or 0)

    def update(self, table: str, row_id: int, **columns: Any) -> None:
        if columns:
            names = ", ".join(f"{name} = ?" for name in columns)
            self.connection.execute(f"UPDATE {table} SET {names} WHERE id = ?", (*columns.values(), row_id))  # noqa: S608


def iso_date(timestamp: float) -> str:
    """A time as clients see it, and as they write it in filters."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def global_id(kind: str, row_id: int) -> str:
    """An id as clients see it. They decode it as base64 (wandb 0.31.0: hex_to_b64_id), so it has to be that."""
    return base64.b64encode(f"{kind}:{row_id}".encode()).decode()


def row_id_of(kind: str, identifier: str) -> int:
    """The row behind a global id; GraphQLError when it isn't one of that kind."""
    try:
        found, _, number = base64.b64decode(identifier, validate=True).decode().partition(":")
        if found == kind and number.isascii() and number.isdigit() and len(number) < 19:
            return int(number)
    except (binascii.Error, UnicodeDecodeError):
        pass
    raise GraphQLError(f"invalid {kind} id")


def parsed(text: str | None, expected: type, what: str) -> Any:
    """JSON that a client sent as a string; GraphQLError unless it is of the expected type."""
    if not text:
        return expected()
    try:
        value = json.loads(text)
    except ValueError:
        raise GraphQLError(f"{what} is not JSON") from None
    if not isinstance(value, expected):
        raise GraphQLError(f"{what} has the wrong type")
    return value
