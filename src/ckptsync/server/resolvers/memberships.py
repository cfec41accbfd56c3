"""Memberships: which versions are in which collections, under which number."""

from __future__ import annotations

from ckptsync.server.resolvers.aliases import VERSION
from ckptsync.server.resolvers.artifacts import find_artifact
from ckptsync.server.resolvers.collections import collection_by_row, find_collection
from ckptsync.server.resolvers.context import Call, Row, resolves


def find_membership(call: Call, collection: Row | None, alias: str) -> Row | None:
    """The membership of `vN` or of an alias."""
    if collection is None:
        return None
    version = VERSION.fullmatch(alias)
    if version:
        return call.row("SELECT * FROM memberships WHERE collection_id = ? AND version = ?", collection["id"], int(version[1]))
    return call.row(
        "SELECT m.* FROM memberships m JOIN aliases a USING (collection_id, artifact_id) WHERE collection_id = ? AND alias = ?",
        collection["id"],
        alias,
    )


def add_member(call: Call, collection: Row, artifact_id: int) -> Row:
    """The version's membership in a collection. A new one gets the next number, which is never reused."""
    found = call.row("SELECT * FROM memberships WHERE collection_id = ? AND artifact_id = ?", collection["id"], artifact_id)
    if found is not None:
        return found
    version = collection_by_row(call, collection["id"])["next_version"]
    call.update("collections", collection["id"], next_version=version + 1, updated_at=call.now)
    columns = {"collection_id": collection["id"], "artifact_id": artifact_id, "version": version}
    row_id = call.insert("memberships", **columns, created_at=call.now)
    return {"id": row_id, **columns, "created_at": call.now}


@resolves("ArtifactCollection.artifactMembership")
def collection_membership(
    source: Row,
    call: Call,
    alias_name: str,
) -> Row | None:
    return find_membership(call, source, alias_name)


@resolves("Project.artifactCollectionMembership")
def project_membership(source: Row, call: Call, name: str) -> Row | None:
    collection_name, _, alias = name.partition(":")
    return find_membership(call, find_collection(call, source, collection_name), alias or "latest")


@resolves("ArtifactCollectionMembership.artifact")
def membership_artifact(source: Row, call: Call) -> Row | None:
    return find_artifact(call, source["artifact_id"])


@resolves("ArtifactCollectionMembership.versionIndex")
def membership_version(source: Row, _call: Call) -> int:
    return int(source["version"])


@resolves("ArtifactCollectionMembership.aliases")
def membership_aliases(source: Row, call: Call) -> list[Row]:
    return call.rows(
        "SELECT * FROM aliases WHERE collection_id = ? AND artifact_id = ? ORDER BY id",
        source["collection_id"],
        source["artifact_id"],
    )


@resolves("Project.artifact")
def project_artifact(source: Row, call: Call, name: str) -> Row | None:
    collection_name, _, alias = name.partition(":")
    membership = find_membership(call, find_collection(call, source, collection_name), alias or "latest")
    return find_artifact(call, membership["artifact_id"]) if membership else None
