"""Projects: found, created on first use, listed and changed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from graphql import GraphQLError

from ckptsync.server.resolvers.accounts import ENTITY, entity
from ckptsync.server.resolvers.context import Call, Row, global_id, resolves, row_id_of
from ckptsync.server.resolvers.filters import column, ordered, selected
from ckptsync.server.resolvers.paging import page

DEFAULT_PROJECT = "uncategorized"


REGISTRY_PREFIX = "wandb-registry-"


NAME = re.compile(r"[^\x00-\x1f/\\#?%:]{1,128}")


def find_project(call: Call, entity_name: str | None, name: str | None) -> Row | None:
    return call.row("SELECT * FROM projects WHERE entity = ? AND name = ?", entity_name or ENTITY, name or DEFAULT_PROJECT)


def ensure_project(call: Call, entity_name: str | None, name: str | None) -> Row:
    """The project. Creates it on first use."""
    found = find_project(call, entity_name, name)
    if found is not None:
        return found
    columns = {"entity": entity_name or ENTITY, "name": name or DEFAULT_PROJECT}
    for what, value in columns.items():
        if not NAME.fullmatch(value):
            raise GraphQLError(f"invalid {what} name")
    row_id = call.insert("projects", **columns, created_at=call.now, updated_at=call.now)
    return call.one("SELECT * FROM projects WHERE id = ?", row_id)


@resolves("Query.project", "Query.model")
def query_project(
    _source: None,
    call: Call,
    name: str | None = None,
    entity_name: str | None = None,
) -> Row | None:
    return find_project(call, entity_name, name)


@resolves("Entity.project")
def entity_project(source: Row, call: Call, name: str | None = None) -> Row | None:
    return find_project(call, source["name"], name)


@resolves("Query.models")
def query_models(
    _source: None,
    call: Call,
    entity_name: str | None = None,
    first: int | None = None,
    after: str | None = None,
) -> Row:
    return page(projects_of(call, entity_name or ENTITY), first, after)


def projects_of(call: Call, entity_name: str, filters: str | None = None, order: str | None = None) -> list[Row]:
    rows = call.rows("SELECT * FROM projects WHERE entity = ? ORDER BY id DESC", entity_name)
    return ordered(selected(rows, filters, column), order, column)


@resolves("Entity.projects")
def entity_projects(
    source: Row,
    call: Call,
    filters: str | None = None,
    first: int | None = None,
    after: str | None = None,
    order: str | None = None,
) -> Row:
    return page(projects_of(call, source["name"], filters, order), first, after)


@resolves("Project.entity")
def project_entity(source: Row, _call: Call) -> Row:
    return entity(source["entity"])


@resolves("Project.entityName")
def project_entity_name(source: Row, _call: Call) -> str:
    return str(source["entity"])


@resolves("Project.internalId")
def project_internal_id(source: Row, _call: Call) -> str:
    return global_id("ProjectInternalId", source["id"])


@resolves("Project.readOnly", "Project.isBenchmark", "Run.readOnly")
def is_not(_source: Row, _call: Call) -> bool:
    return False


@resolves("Project.allowAllArtifactTypesInRegistry")
def allows_all_types(source: Row, _call: Call) -> bool:
    """Whether a registry takes artifacts of any type, or only of the types that it was given."""
    return bool(source["name"].startswith(REGISTRY_PREFIX) and source["any_type"] != 0)


@resolves("Mutation.upsertModel")
def upsert_project(_source: None, call: Call, given: Row) -> Row:
    if given.get("id"):
        project = call.row("SELECT * FROM projects WHERE id = ?", row_id_of("Project", given["id"]))
        if project is None:
            raise GraphQLError("no such project")
        inserted = False
    else:
        inserted = find_project(call, given.get("entityName"), given.get("name")) is None
        project = ensure_project(call, given.get("entityName"), given.get("name"))
    changes = {name: given[name] for name in ("description", "access") if given.get(name) is not None}
    if given.get("allowAllArtifactTypesInRegistry") is not None:
        changes["any_type"] = int(given["allowAllArtifactTypesInRegistry"])
    call.update("projects", project["id"], **changes, updated_at=call.now)
    for artifact_type in given.get("artifactTypes") or ():
        values = (project["id"], artifact_type["name"], call.now)
        call.execute("INSERT OR IGNORE INTO project_types (project_id, name, created_at) VALUES (?, ?, ?)", *values)
    project = {**project, **changes}
    return {"inserted": inserted, "project": project, "model": project}


@resolves("Mutation.renameProject")
def rename_project(_source: None, call: Call, given: Row) -> Row:
    project = find_project(call, given["entityName"], given["oldProjectName"])
    if project is None:
        raise GraphQLError("no such project")
    name = given["newProjectName"]
    if not NAME.fullmatch(name) or find_project(call, given["entityName"], name) is not None:
        raise GraphQLError(f"the project name {name!r} is invalid or taken")
    call.update("projects", project["id"], name=name, updated_at=call.now)
    project = {**project, "name": name}
    return {"inserted": False, "project": project, "model": project}


def entities_projects(call: Call, entity_name: str, filters: str | None) -> Sequence[int]:
    """The row ids of an entity's projects that match a filter."""
    return [row["id"] for row in projects_of(call, entity_name, filters)]
