"""Relay connections over short lists, which are read as a whole: the requested page and its cursors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from graphql import GraphQLError

from ckptsync.server.resolvers.context import Row

MAX_PAGE = 10_000


def page_size(first: int | None) -> int:
    """How many rows a page has at most."""
    return MAX_PAGE if first is None else min(max(first, 0), MAX_PAGE)


def page(
    rows: Sequence[Row],
    first: int | None,
    after: str | None,
    *,
    node: Callable[[Row], Any] = lambda row: row,
    key: Callable[[Row], Any] = lambda row: row["id"],
) -> dict[str, Any]:
    """The connection for `first` rows after the cursor.

    A cursor holds a position and the key of the row there, so rows inserted before it meanwhile neither repeat nor hide others.
    """
    start = 0 if not after else _position_after(rows, after, key)
    count = page_size(first)
    selected = rows[start : start + count]
    edges = [{"cursor": f"{start + offset}:{key(row)}", "node": node(row), "row": row} for offset, row in enumerate(selected)]
    more = start + count < len(rows)
    return {
        "totalCount": len(rows),
        "edges": edges,
        "pageInfo": {"endCursor": edges[-1]["cursor"] if edges else None, "hasNextPage": more},
    }


def _position_after(rows: Sequence[Row], cursor: str, key: Callable[[Row], Any]) -> int:
    match = re.fullmatch(r"(\d{1,18}):(.*)", cursor, re.DOTALL)
    if match is None:
        raise GraphQLError("invalid cursor")
    position, expected = int(match[1]), match[2]
    if position < len(rows) and str(key(rows[position])) == expected:
        return position + 1
    for index, row in enumerate(rows):
        if str(key(row)) == expected:
            return index + 1
    return min(position, len(rows))


def matching(rows: Sequence[Row], names: Sequence[str | None] | None) -> Sequence[Row]:
    """The rows with one of these names, all rows if no names are given."""
    if not names:
        return rows
    wanted = set(names)
    return [row for row in rows if row["name"] in wanted]
