"""Long lists, filtered, sorted and paged by SQLite: a page costs the same wherever it is in the list.

A cursor holds the sort key and the id of the last row (keyset paging), so rows inserted meanwhile neither repeat nor hide others.
SQLite calls back to match a filter, and to get a sort key that is not a column, with only the columns that this takes.
"""

from __future__ import annotations

import base64
import binascii
import json
import sqlite3
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from graphql import GraphQLError

from ckptsync.server.resolvers.context import Call
from ckptsync.server.resolvers.filters import MAX_INTEGER, RowLookup, column, matches, names_in, parse_filters, sort_key
from ckptsync.server.resolvers.paging import page_size


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of rows: `source` is a table expression with the parameters `values` and a unique number in the column `key`."""

    call: Call
    source: str
    values: tuple[Any, ...]
    key: str
    order: str
    """The order of a query that gives none: `+name` or `-name`."""
    sortable: Mapping[str, str]
    """Columns or SQL expressions, never NULL, by the names that orders use for them."""
    look_up: RowLookup = column
    """A row's value by the name that filters and orders use for it."""
    reads: Callable[[str], Collection[str]] = lambda _name: ()
    """The columns that `look_up` reads for a name."""

    def count(self, filters: str | None) -> int:
        """How many rows match a filter."""
        with _Callbacks(self) as callbacks:
            condition = callbacks.condition(filters)
            # The statements here consist of our own names; what a client sent is a parameter or behind a callback.
            return int(callbacks.rows(f"SELECT count(*) FROM {self.source} WHERE {condition}", *self.values)[0][0])  # noqa: S608

    def page(self, filters: str | None, order: str | None, first: int | None, after: str | None) -> dict[str, Any]:
        """The connection for `first` rows after the cursor."""
        size = page_size(first)
        found = self._found(filters, order or self.order, after, size + 1)
        edges = [self._edge(*keys) for keys in found[:size]]
        return {
            "totalCount": partial(self.count, filters),
            "edges": edges,
            "pageInfo": {"endCursor": edges[-1]["cursor"] if edges else None, "hasNextPage": len(found) > size},
        }

    def _found(self, filters: str | None, order: str, after: str | None, limit: int) -> list[tuple[Any, int]]:
        """(sort key, row key) of the rows after a cursor."""
        direction, sign = ("DESC", "<") if order.startswith("-") else ("ASC", ">")
        name = order.lstrip("+-")
        with _Callbacks(self) as callbacks:
            condition, sort = callbacks.condition(filters), self.sortable.get(name)
            position, parameters = _position(after, sign, nullable=sort is None)
            # Rows without a value come last in either direction. Without MATERIALIZED each use of a sort key would call back.
            materialized, nulls = ("", "") if sort else ("MATERIALIZED", "sort IS NULL, ")
            return callbacks.rows(
                f"WITH found AS {materialized} (SELECT {sort or callbacks.sort(name)} AS sort, {self.key} AS row"  # noqa: S608
                f" FROM {self.source} WHERE {condition})"
                f" SELECT sort, row FROM found WHERE {position} ORDER BY {nulls}sort {direction}, row {direction} LIMIT ?",
                *self.values,
                *parameters,
                limit,
            )

    def _edge(self, sort: Any, row_key: int) -> dict[str, Any]:
        row = self.call.one(f"SELECT * FROM {self.source} WHERE {self.key} = ?", *self.values, row_key)  # noqa: S608
        return {"cursor": base64.urlsafe_b64encode(json.dumps([sort, row_key]).encode()).decode(), "node": row, "row": row}


def _position(cursor: str | None, sign: str, *, nullable: bool) -> tuple[str, list[Any]]:
    """The condition for the rows after a cursor, and its parameters."""
    if not cursor:
        return "TRUE", []
    try:
        sort, row_key = json.loads(base64.urlsafe_b64decode(cursor))
    except (binascii.Error, ValueError, TypeError):
        raise GraphQLError("invalid cursor") from None
    sortable = sort is None or isinstance(sort, (str, float)) or (isinstance(sort, int) and abs(sort) <= MAX_INTEGER)
    if not sortable or not isinstance(row_key, int) or abs(row_key) > MAX_INTEGER:
        raise GraphQLError("invalid cursor")
    if sort is None:
        return f"sort IS NULL AND row {sign} ?", [row_key]
    return f"((sort, row) {sign} (?, ?){' OR sort IS NULL' if nullable else ''})", [sort, row_key]


class _Callbacks:
    """The functions `meets` and `sort_key` of one statement. An error in them becomes the statement's."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._error: Exception | None = None
        self._functions: list[tuple[str, int]] = []

    def __enter__(self) -> _Callbacks:
        return self

    def __exit__(self, *_: object) -> None:
        for name, count in self._functions:
            self._listing.call.connection.create_function(name, count, None)

    def condition(self, filters: str | None) -> str:
        """SQL that is true for the rows that match a filter."""
        parsed = parse_filters(filters)
        if not parsed:
            return "TRUE"
        look_up = self._listing.look_up
        return self._function("meets", names_in(parsed), lambda row: matches(parsed, partial(look_up, row)))

    def sort(self, name: str) -> str:
        """SQL for the value by which a name sorts: NULL, a number or a text, which sort in this order."""
        return self._function("sort_key", [name], lambda row: sort_key(self._listing.look_up(row, name)))

    def rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        try:
            return [tuple(row) for row in self._listing.call.execute(statement, *parameters)]
        except sqlite3.OperationalError:
            if self._error is not None:
                raise self._error from None
            raise

    def _function(self, name: str, names: Collection[str], value_of: Callable[[dict[str, Any]], Any]) -> str:
        columns = sorted({column for each in names for column in self._listing.reads(each)})

        def call(*values: Any) -> Any:
            try:
                return value_of(dict(zip(columns, values, strict=True)))
            except Exception as error:
                self._error = error
                raise

        self._listing.call.connection.create_function(name, len(columns), call)
        self._functions.append((name, len(columns)))
        return f"{name}({', '.join(columns)})"
