"""Artifact types. A project has those of its collections, a registry also those that it was given."""

from __future__ import annotations

from typing import Any

from ckptsync.server.resolvers.collections import collections_of, find_collection
from ckptsync.server.resolvers.context import Call, Row, global_id, resolves
from ckptsync.server.resolvers.paging import page


def artifact_type_of(project_id: int, name: str, created_at: float) -> Row:
    identifier = global_id("ArtifactType", project_id)
    return {"id": f"{identifier}:{name}", "name": name, "created_at": created_at, "project_id": project_id}


@resolves("Project.artifactType")
def project_artifact_type(source: Row, call: Call, name: str) -> Row | None:
    return next((found for found in _types(call, source["id"]) if found["name"] == name), None)


@resolves("Project.artifactTypes")
def project_artifact_types(source: Row, call: Call, first: int | None = None, after: str | None = None, **_arguments: Any) -> Row:
    return page(_types(call, source["id"]), first, after)


def _types(call: Call, project_id: int) -> list[Row]:
    rows = call.rows(
        "SELECT name, min(created_at) AS at FROM (SELECT type AS name, created_at FROM collections WHERE project_id = ?"
        " UNION ALL SELECT name, created_at FROM project_types WHERE project_id = ?) GROUP BY name",
        project_id,
        project_id,
    )
    return [artifact_type_of(project_id, row["name"], row["at"]) for row in rows]


@resolves("ArtifactType.artifactCollection")
def type_artifact_collection(source: Row, call: Call, name: str) -> Row | None:
    found = find_collection(call, {"id": source["project_id"]}, name)
    return found if found and found["type"] == source["name"] else None


@resolves("ArtifactType.artifactCollections")
def type_artifact_collections(
    source: Row,
    call: Call,
    filters: str | None = None,
    first: int | None = None,
    after: str | None = None,
    order: str | None = None,
) -> Row:
    rows = collections_of(call, [source["project_id"]], filters, order, type=source["name"])
    return page(rows, first, after)


@resolves("ArtifactCollection.defaultArtifactType")
def collection_type(source: Row, _call: Call) -> Row:
    return artifact_type_of(source["project_id"], source["type"], source["created_at"])
