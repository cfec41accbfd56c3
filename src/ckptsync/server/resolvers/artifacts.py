"""Versions of artifacts: their fields, how they are listed, and how they are edited."""

from __future__ import annotations

from functools import partial
from typing import Any

from graphql import GraphQLError

from ckptsync.server.resolvers.aliases import set_alias
from ckptsync.server.resolvers.collections import collection_by_row
from ckptsync.server.resolvers.context import Call, Row, global_id, iso_date, parsed, resolves, row_id_of
from ckptsync.server.resolvers.listing import Listing
from ckptsync.server.resolvers.paging import page
from ckptsync.server.resolvers.tags import add_tags, remove_tags, tags_of

ALGORITHMS = {"MANIFEST_MD5": "md5", "MANIFEST_XXH128": "xxh128"}
MAX_METADATA_KEYS = 100
TTL_INHERITED, TTL_DISABLED = -1, -2
COLUMNS = {
    **{name: name for name in ("digest", "state", "description", "size", "file_count", "history_step", "version")},
    "created_at": "created_at",
    "createdAt": "created_at",
    "updated_at": "updated_at",
    "updatedAt": "updated_at",
    "fileCount": "file_count",
    "versionIndex": "version",
    "version_index": "version",
}
"""By the names that filters and orders use for them."""


def find_artifact(call: Call, row_id: int) -> Row | None:
    return call.row("SELECT * FROM artifacts WHERE id = ?", row_id)


def artifact_by_id(call: Call, identifier: str) -> Row:
    """The artifact of a global id. Raises GraphQLError if there is none or it was deleted."""
    found = find_artifact(call, row_id_of("Artifact", identifier))
    if found is None or found["state"] == "DELETED":
        raise GraphQLError("no such artifact")
    return found


@resolves("Query.artifact")
def query_artifact(_source: None, call: Call, identifier: str) -> Row | None:
    return find_artifact(call, row_id_of("Artifact", identifier))


@resolves("Query.clientIDMapping")
def client_id_mapping(_source: None, call: Call, client_id: str) -> Row | None:
    found = call.row("SELECT id FROM artifacts WHERE client_id = ? ORDER BY id DESC", client_id)
    return {"serverID": global_id("Artifact", found["id"])} if found else None


@resolves("Artifact.aliases")
def artifact_aliases(source: Row, call: Call) -> list[Row]:
    return call.rows("SELECT * FROM aliases WHERE artifact_id = ? ORDER BY id", source["id"])


@resolves("Artifact.artifactMemberships")
def artifact_memberships(source: Row, call: Call, first: int | None = None, after: str | None = None) -> Row:
    rows = call.rows("SELECT * FROM memberships WHERE artifact_id = ? ORDER BY id", source["id"])
    return page(rows, first, after)


@resolves("Artifact.artifactSequence")
def artifact_sequence(source: Row, call: Call) -> Row:
    return collection_by_row(call, source["collection_id"])


@resolves("Artifact.artifactType")
def artifact_type(source: Row, call: Call) -> Row:
    collection = collection_by_row(call, source["collection_id"])
    return {"id": collection["type"], "name": collection["type"], "created_at": collection["created_at"]}


@resolves("Artifact.versionIndex")
def artifact_version(source: Row, call: Call) -> int | None:
    found = call.row(
        "SELECT version FROM memberships WHERE collection_id = ? AND artifact_id = ?",
        source["collection_id"],
        source["id"],
    )
    return found["version"] if found else None


@resolves("Artifact.digestAlgorithm")
def artifact_algorithm(source: Row, _call: Call) -> str:
    return str(source["algorithm"])


@resolves("Artifact.commitHash")
def artifact_commit_hash(source: Row, _call: Call) -> str:
    return str(source["client_id"] or source["digest"])[:20]


@resolves("Artifact.ttlDurationSeconds")
def artifact_ttl(source: Row, _call: Call) -> int:
    """Always a number: wandb 0.31.0 rejects null and takes a number that isn't positive for "no TTL"."""
    return source["ttl_seconds"] or TTL_DISABLED


@resolves("Artifact.ttlIsInherited")
def artifact_ttl_is_inherited(source: Row, _call: Call) -> bool:
    return source["ttl_seconds"] in (None, TTL_INHERITED)


@resolves("Artifact.tags")
def artifact_tags(source: Row, call: Call) -> list[Row]:
    return tags_of(call, "artifact", source["id"])


@resolves("ArtifactSequence.latestArtifact")
def latest_artifact(source: Row, call: Call) -> Row | None:
    return call.row(
        "SELECT a.* FROM memberships m JOIN artifacts a ON a.id = m.artifact_id"
        " WHERE m.collection_id = ? ORDER BY m.version DESC LIMIT 1",
        source["id"],
    )


@resolves("ArtifactSequence.digestAlgorithm")
def sequence_algorithm(source: Row, call: Call) -> str:
    found = call.row("SELECT algorithm FROM artifacts WHERE collection_id = ? ORDER BY id DESC LIMIT 1", source["id"])
    return found["algorithm"] if found else "MANIFEST_MD5"


@resolves("ArtifactCollection.artifacts")
def collection_artifacts(
    source: Row,
    call: Call,
    filters: str | None = None,
    first: int | None = None,
    after: str | None = None,
    order: str | None = None,
) -> Row:
    """The versions of a collection, newest first unless an order is given."""
    versions = Listing(
        call,
        source="(SELECT a.*, m.version FROM memberships m JOIN artifacts a ON a.id = m.artifact_id WHERE m.collection_id = ?)",
        values=(source["id"],),
        key="version",
        order="-version",
        look_up=partial(lookup, call),
        reads=_reads,
        sortable={name: column for name, column in COLUMNS.items() if column in ("version", "created_at", "updated_at")},
    )
    connection = versions.page(filters, order, first, after)
    for edge in connection["edges"]:
        edge["version"] = f"v{edge['row']['version']}"
    return connection


def lookup(call: Call, artifact: Row, name: str) -> Any:
    """A version's value by the name that filters and orders use for it."""
    if name in ("tag", "tags"):
        return [tag["name"] for tag in tags_of(call, "artifact", artifact["id"])]
    if name in ("alias", "aliases"):
        return [row["alias"] for row in call.rows("SELECT alias FROM aliases WHERE artifact_id = ?", artifact["id"])]
    head, _, rest = name.partition(".")
    if head == "metadata" and rest:
        value: Any = parsed(artifact["metadata"], dict, "metadata")
        for key in rest.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value
    found = artifact.get(COLUMNS.get(name, ""))
    return iso_date(found) if found and COLUMNS[name] in ("created_at", "updated_at") else found


def _reads(name: str) -> tuple[str, ...]:
    """The columns that `lookup` reads for a name."""
    if name in ("tag", "tags", "alias", "aliases"):
        return ("id",)
    if name.startswith("metadata."):
        return ("metadata",)
    return (COLUMNS[name],) if name in COLUMNS else ()


def checked_metadata(text: str | None) -> str | None:
    """The metadata of a request. Raises GraphQLError unless it is an object with at most 100 keys, W&B's limit."""
    if text and len(parsed(text, dict, "metadata")) > MAX_METADATA_KEYS:
        raise GraphQLError(f"metadata has more than {MAX_METADATA_KEYS} keys")
    return text


@resolves("Mutation.updateArtifact")
def update_artifact(_source: None, call: Call, given: Row) -> Row:
    artifact = artifact_by_id(call, given["artifactID"])
    changes = {name: given[name] for name in ("description", "metadata") if given.get(name) is not None}
    checked_metadata(changes.get("metadata"))
    if given.get("ttlDurationSeconds") is not None:
        if given["ttlDurationSeconds"] <= 0 and given["ttlDurationSeconds"] not in (TTL_INHERITED, TTL_DISABLED):
            raise GraphQLError("a TTL has to be positive")
        changes["ttl_seconds"] = given["ttlDurationSeconds"]
    call.update("artifacts", artifact["id"], **changes, updated_at=call.now)
    remove_tags(call, "artifact", artifact["id"], given.get("tagsToDelete"))
    add_tags(call, "artifact", artifact["id"], given.get("tagsToAdd"))
    if given.get("aliases") is not None:
        collection = collection_by_row(call, artifact["collection_id"])
        call.execute("DELETE FROM aliases WHERE collection_id = ? AND artifact_id = ?", collection["id"], artifact["id"])
        for alias in given["aliases"]:
            set_alias(call, collection, alias["alias"], artifact["id"])
    return {"artifact": find_artifact(call, artifact["id"])}
