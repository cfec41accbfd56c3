"""Partial manifests: several of them become the one manifest of a version when it is committed.

A PATCH adds the files of one process to a distributed artifact, an INCREMENTAL one adds files to a base version. Later ones win.
"""

from __future__ import annotations

import json
from typing import Any

from graphql import GraphQLError

from ckptsync.server.resolvers.artifact_files import key_of_digest, manifest_file
from ckptsync.server.resolvers.artifacts import ALGORITHMS, artifact_by_id
from ckptsync.server.resolvers.context import Call, Row, global_id, row_id_of
from ckptsync.server.resolvers.deletion import release
from ckptsync.server.resolvers.manifest import manifest_document
from ckptsync.server.storage.content_store import HASHERS

PARTIAL_TYPES = ("PATCH", "INCREMENTAL")


def declared_part(call: Call, artifact: Row, given: Row) -> Row:
    """A new partial manifest as clients see it."""
    if artifact["state"] != "PENDING":
        raise GraphQLError("the artifact is committed already")
    base_id = None
    if given["type"] == "INCREMENTAL" and given.get("baseArtifactID"):
        base_id = artifact_by_id(call, given["baseArtifactID"])["id"]
    row_id = call.insert("partial_manifests", artifact_id=artifact["id"], base_id=base_id)
    return updated_part(call, call.one("SELECT * FROM partial_manifests WHERE id = ?", row_id), given.get("digest"))


def find_part(call: Call, identifier: str) -> Row | None:
    """The partial manifest of a global id, None if it is that of another manifest."""
    try:
        row_id = row_id_of("PartialManifest", identifier)
    except GraphQLError:
        return None
    found = call.row("SELECT * FROM partial_manifests WHERE id = ?", row_id)
    if found is None:
        raise GraphQLError("no such artifact manifest")
    return found


def updated_part(call: Call, part: Row, digest: str | None) -> Row:
    """A partial manifest as clients see it, with a link to upload the bytes of that MD5."""
    key = key_of_digest("md5", digest) if digest else None
    if key is not None:
        call.update("partial_manifests", part["id"], content=key)
    return manifest_file(call, global_id("PartialManifest", part["id"]), part["content"], key)


def with_merged_manifest(call: Call, artifact: Row) -> Row:
    """The artifact with the manifest that its partial ones make up, if it has any; with that manifest's digest."""
    parts = call.rows("SELECT * FROM partial_manifests WHERE artifact_id = ? ORDER BY id", artifact["id"])
    if not parts:
        return artifact
    # A process that died before its manifest was uploaded adds nothing. Files that only it declared are no part of the version.
    uploaded = [part for part in parts if part["content"] and call.content.size(part["content"]) is not None]
    if not uploaded:
        raise GraphQLError("the artifact's manifest has not been uploaded")
    document = _merged(call, uploaded)
    changes = {"manifest": call.content.add(json.dumps(document).encode()), "digest": _digest(artifact, document["contents"])}
    call.update("artifacts", artifact["id"], **changes)
    call.execute("DELETE FROM partial_manifests WHERE artifact_id = ?", artifact["id"])
    call.execute(
        "DELETE FROM artifact_files WHERE artifact_id = ? AND name NOT IN (SELECT value FROM json_each(?))",
        artifact["id"],
        json.dumps([*document["contents"]]),
    )
    release(call, {part["content"] for part in parts} - {changes["manifest"]})
    return {**artifact, **changes}


def _merged(call: Call, parts: list[Row]) -> dict[str, Any]:
    base_id = parts[-1]["base_id"]
    base = call.row("SELECT manifest FROM artifacts WHERE id = ? AND state = 'COMMITTED'", base_id) if base_id else None
    if base_id and base is None:
        raise GraphQLError("the base version does not exist any more")
    keys = [*([base["manifest"]] if base else []), *(part["content"] for part in parts)]
    documents = [manifest_document(call, key) for key in keys]
    contents = {name: entry for document in documents for name, entry in document["contents"].items()}
    return {**documents[-1], "contents": contents}


def _digest(artifact: Row, contents: dict[str, Any]) -> str:
    """The digest of a version as clients compute it (wandb 0.31.0)."""
    hasher = HASHERS[ALGORITHMS[artifact["algorithm"]]]()
    hasher.update(b"wandb-artifact-manifest-v1\n")
    for name, entry in sorted(contents.items()):
        hasher.update(f"{name}:{entry.get('digest') if isinstance(entry, dict) else None}\n".encode())
    return hasher.hexdigest()
