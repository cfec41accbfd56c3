"""Tags on versions and on collections."""

from __future__ import annotations

from collections.abc import Sequence

from ckptsync.server.resolvers.context import Call, Row


def add_tags(call: Call, owner: str, owner_id: int, tags: Sequence[Row] | None) -> None:
    for tag in tags or ():
        call.execute("INSERT OR IGNORE INTO tags (owner, owner_id, name) VALUES (?, ?, ?)", owner, owner_id, tag["tagName"])


def remove_tags(call: Call, owner: str, owner_id: int, tags: Sequence[Row] | None) -> None:
    for tag in tags or ():
        call.execute("DELETE FROM tags WHERE owner = ? AND owner_id = ? AND name = ?", owner, owner_id, tag["tagName"])


def tags_of(call: Call, owner: str, owner_id: int) -> list[Row]:
    return call.rows("SELECT id, name FROM tags WHERE owner = ? AND owner_id = ? ORDER BY id", owner, owner_id)
