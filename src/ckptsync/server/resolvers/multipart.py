"""Multipart uploads. The parts are stored as they are and never joined."""

from __future__ import annotations

from graphql import GraphQLError

from ckptsync.server.resolvers.artifact_files import key_of_digest
from ckptsync.server.resolvers.artifacts import artifact_by_id
from ckptsync.server.resolvers.context import Call, Row, resolves
from ckptsync.server.storage.content_store import key_of_parts

MAX_PARTS = 10_000


def multipart_key(call: Call, parts: list[str]) -> str:
    if len(parts) > MAX_PARTS:
        raise GraphQLError("too many parts")
    key = key_of_parts(parts)
    for number, part in enumerate(parts, start=1):
        call.execute("INSERT OR IGNORE INTO parts (content, number, part) VALUES (?, ?, ?)", key, number, part)
    return key


def parts_of(call: Call, key: str) -> list[str]:
    return [row["part"] for row in call.rows("SELECT part FROM parts WHERE content = ? ORDER BY number", key)]


def content_size(call: Call, key: str) -> int | None:
    """The size of a content in bytes, in one piece or in parts. None unless all of it is here."""
    if not key.startswith("parts-"):
        return call.content.size(key)
    sizes = [call.content.size(part) for part in parts_of(call, key)]
    known = [size for size in sizes if size is not None]
    return sum(known) if sizes and len(known) == len(sizes) else None


@resolves("Mutation.completeMultipartUploadArtifact")
def complete_multipart(_source: None, call: Call, given: Row) -> Row:
    """Confirm that all parts of a file are here."""
    artifact = artifact_by_id(call, given["artifactID"])
    row = call.row("SELECT digest FROM artifact_files WHERE artifact_id = ? AND content = ?", artifact["id"], given["uploadID"])
    if row is None:
        raise GraphQLError("no such multipart upload")
    completed = [key_of_digest("md5", part["hexMD5"].strip('"')) for part in given["completedParts"]]
    if completed != parts_of(call, given["uploadID"]) or content_size(call, given["uploadID"]) is None:
        raise GraphQLError("some parts are missing or differ from the declared ones")
    return {"digest": row["digest"]}
