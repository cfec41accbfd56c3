"""Reads an uploaded manifest and checks that every file in it is here."""

from __future__ import annotations

from typing import Any

from graphql import GraphQLError

from ckptsync.server.resolvers.artifact_files import key_of_digest
from ckptsync.server.resolvers.artifacts import ALGORITHMS
from ckptsync.server.resolvers.context import Call, Row, parsed
from ckptsync.server.resolvers.multipart import content_size

MAX_MANIFEST_BYTES = 512 * 1024 * 1024


Entry = tuple[str, str, int, str | None, str | None]


def manifest_entries(call: Call, artifact: Row) -> list[Entry]:
    """The entries of the uploaded manifest. Raises GraphQLError if it or a file in it is missing."""
    contents = manifest_document(call, artifact["manifest"])["contents"]
    declared = {
        row["name"]: row
        for row in call.rows("SELECT name, digest, content FROM artifact_files WHERE artifact_id = ?", artifact["id"])
    }
    entries = [_entry(call, artifact, name, entry, declared.get(name)) for name, entry in contents.items()]
    missing = sorted(name for name, row in declared.items() if name not in contents and row["content"])
    if missing:
        raise GraphQLError(f"declared files are missing in the manifest, for example {missing[0]!r}")
    return entries


def manifest_document(call: Call, key: str | None) -> dict[str, Any]:
    """The JSON of an uploaded manifest. Raises GraphQLError if it is missing or has no contents."""
    size = call.content.size(key) if key else None
    if key is None or size is None or size > MAX_MANIFEST_BYTES:
        raise GraphQLError("the artifact's manifest has not been uploaded")
    document: dict[str, Any] = parsed(call.content.path(key).read_text(encoding="utf-8"), dict, "manifest")
    if not isinstance(document.get("contents"), dict):
        raise GraphQLError("the manifest has no contents")
    return document


def _entry(call: Call, artifact: Row, name: str, entry: Any, declared: Row | None) -> Entry:
    digest = entry.get("digest") if isinstance(entry, dict) else None
    if not isinstance(digest, str) or len(name) > MAX_NAME:
        raise GraphQLError("the manifest has an invalid entry")
    if entry.get("ref"):
        return (name, digest, int(entry.get("size") or 0), None, str(entry["ref"]))
    content = declared["content"] if declared and declared["digest"] == digest else None
    content = content or _content_of_digest(call, artifact, digest)
    size = content_size(call, content)
    if size is None:
        raise GraphQLError(f"the file {name!r} has not been uploaded")
    if entry.get("size") not in (None, size):
        raise GraphQLError(f"the size of the file {name!r} differs from the manifest")
    return (name, digest, size, content, None)


def _content_of_digest(call: Call, artifact: Row, digest: str) -> str:
    """The content of a file that was taken from an earlier version without being declared again."""
    known = call.row(
        "SELECT content FROM artifact_files f JOIN artifacts a ON a.id = f.artifact_id"
        " WHERE f.digest = ? AND a.algorithm = ? AND a.state = 'COMMITTED' AND content IS NOT NULL",
        digest,
        artifact["algorithm"],
    )
    return known["content"] if known else key_of_digest(ALGORITHMS[artifact["algorithm"]], digest)


MAX_NAME = 1024
