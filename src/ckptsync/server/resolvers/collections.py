"""Collections of versions, sequences and portfolios: found, created, listed, edited and deleted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from graphql import GraphQLError

from ckptsync.server.resolvers.context import Call, Row, resolves, row_id_of
from ckptsync.server.resolvers.deletion import empty_collection
from ckptsync.server.resolvers.filters import ordered, selected
from ckptsync.server.resolvers.paging import page
from ckptsync.server.resolvers.projects import find_project
from ckptsync.server.resolvers.tags import add_tags, remove_tags, tags_of

COLLECTION_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
TYPE_NAME = re.compile(r"[-\w](?:[-.\w ]*[-.\w])?")


def find_collection(call: Call, project: Row | None, name: str) -> Row | None:
    if project is None:
        return None
    return call.row("SELECT * FROM collections WHERE project_id = ? AND name = ? AND state = 'READY'", project["id"], name)


def ensure_collection(call: Call, project: Row, name: str, kind: str, type_name: str) -> Row:
    """The collection. Creates it if it is new. Raises GraphQLError if one of another kind or type has that name."""
    found = find_collection(call, project, name)
    if found is None:
        if not COLLECTION_NAME.fullmatch(name):
            raise GraphQLError(f"invalid artifact name {name!r}")
        if not TYPE_NAME.fullmatch(type_name) or len(type_name) > 128:
            raise GraphQLError("invalid artifact type")
        columns = {"project_id": project["id"], "name": name, "kind": kind, "type": type_name}
        row_id = call.insert("collections", **columns, created_at=call.now, updated_at=call.now)
        found = collection_by_row(call, row_id)
    if found["kind"] != kind:
        raise GraphQLError(f"{name} is a {found['kind'].lower()}, not a {kind.lower()}")
    if found["type"] != type_name:
        raise GraphQLError(f"artifact {name} already exists with type {found['type']!r}; cannot be of type {type_name!r}")
    return found


def collection_by_row(call: Call, row_id: int) -> Row:
    return call.one("SELECT * FROM collections WHERE id = ?", row_id)


def collection_by_id(call: Call, identifier: str, kind: str | None = None) -> Row:
    """The collection of a global id. Raises GraphQLError if it does not exist or is of another kind."""
    for name in ("ArtifactSequence", "ArtifactPortfolio"):
        try:
            row_id = row_id_of(name, identifier)
        except GraphQLError:
            continue
        found = call.row("SELECT * FROM collections WHERE id = ? AND state = 'READY'", row_id)
        if found is not None and kind in (None, found["kind"]):
            return found
    raise GraphQLError("no such artifact collection")


@resolves("Project.artifactCollection")
def project_artifact_collection(source: Row, call: Call, name: str) -> Row | None:
    return find_collection(call, source, name)


def collections_of(call: Call, project_ids: Sequence[int], filters: str | None, order: str | None, **equal: Any) -> list[Row]:
    """The collections of some projects, newest first unless `order` says otherwise."""
    rows: list[Row] = []
    for project_id in project_ids:
        rows += call.rows("SELECT * FROM collections WHERE project_id = ? AND state = 'READY' ORDER BY id DESC", project_id)
    rows = [row for row in rows if all(row[name] == value for name, value in equal.items() if value is not None)]
    look_up = partial(_lookup, call)
    return ordered(selected(rows, filters, look_up), order, look_up)


def _lookup(call: Call, collection: Row, name: str) -> Any:
    if name in ("tag", "tags"):
        return [tag["name"] for tag in tags_of(call, "collection", collection["id"])]
    columns = {"createdAt": "created_at", "updatedAt": "updated_at"}
    return collection.get(columns.get(name, name))


@resolves("Project.artifactCollections")
def project_artifact_collections(
    source: Row,
    call: Call,
    filters: str | None = None,
    first: int | None = None,
    after: str | None = None,
    order: str | None = None,
) -> Row:
    return page(collections_of(call, [source["id"]], filters, order), first, after)


@resolves("Query.artifactCollection")
def query_artifact_collection(_source: None, call: Call, identifier: str) -> Row | None:
    try:
        return collection_by_id(call, identifier)
    except GraphQLError:
        return None


@resolves("ArtifactCollection.project")
def collection_project(source: Row, call: Call) -> Row | None:
    return call.row("SELECT * FROM projects WHERE id = ?", source["project_id"])


@resolves("ArtifactCollection.tags")
def collection_tags(source: Row, call: Call) -> Row:
    return {"edges": [{"node": tag} for tag in tags_of(call, "collection", source["id"])]}


@resolves("ArtifactCollection.aliases")
def collection_aliases(source: Row, call: Call, first: int | None = None, after: str | None = None) -> Row:
    rows = call.rows("SELECT * FROM aliases WHERE collection_id = ? ORDER BY id", source["id"])
    return page(rows, first, after)


@resolves("ArtifactAlias.artifactCollection", "ArtifactCollectionMembership.artifactCollection")
def its_collection(source: Row, call: Call) -> Row:
    return collection_by_row(call, source["collection_id"])


@resolves("Mutation.updateArtifactSequence", "Mutation.updateArtifactPortfolio")
def update_collection(_source: None, call: Call, given: Row) -> Row:
    collection = collection_by_id(call, given.get("artifactSequenceID") or given["artifactPortfolioID"])
    name = given.get("name") or collection["name"]
    taken = name != collection["name"] and find_collection(call, {"id": collection["project_id"]}, name)
    if taken or not COLLECTION_NAME.fullmatch(name):
        raise GraphQLError(f"the name {name!r} cannot be used")
    changes = {"name": name}
    if "description" in given:
        changes["description"] = given["description"]
    call.update("collections", collection["id"], **changes, updated_at=call.now)
    return {"artifactCollection": collection_by_row(call, collection["id"])}


@resolves("Mutation.moveArtifactSequence")
def move_sequence(_source: None, call: Call, given: Row) -> Row:
    collection = collection_by_id(call, given["artifactSequenceID"], "SEQUENCE")
    if not TYPE_NAME.fullmatch(given["destinationArtifactTypeName"]):
        raise GraphQLError("invalid artifact type")
    call.update("collections", collection["id"], type=given["destinationArtifactTypeName"], updated_at=call.now)
    return {"artifactCollection": collection_by_row(call, collection["id"])}


@resolves("Mutation.deleteArtifactSequence", "Mutation.deleteArtifactPortfolio")
def delete_collection(_source: None, call: Call, given: Row) -> Row:
    """Delete a sequence with all its versions, or a portfolio, whose versions stay in their sequences."""
    collection = collection_by_id(call, given.get("artifactSequenceID") or given["artifactPortfolioID"])
    empty_collection(call, collection["id"])
    call.update("collections", collection["id"], state="DELETED", updated_at=call.now)
    return {"artifactCollection": collection_by_row(call, collection["id"])}


def named_collection(call: Call, given: Row) -> Row:
    """The collection that a request names by entity, project and name. Raises GraphQLError if there is none."""
    project = find_project(call, given["entityName"], given["projectName"])
    collection = find_collection(call, project, given["artifactCollectionName"])
    if collection is None:
        raise GraphQLError("no such artifact collection")
    return collection


@resolves("Mutation.createArtifactCollectionTagAssignments")
def tag_collection(_source: None, call: Call, given: Row) -> Row:
    collection = named_collection(call, given)
    add_tags(call, "collection", collection["id"], given["tags"])
    return {"tags": tags_of(call, "collection", collection["id"])}


@resolves("Mutation.deleteArtifactCollectionTagAssignments")
def untag_collection(_source: None, call: Call, given: Row) -> Row:
    remove_tags(call, "collection", named_collection(call, given)["id"], given["tags"])
    return {"success": True}
