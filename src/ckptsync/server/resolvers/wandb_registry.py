"""Links versions into portfolios and registry collections, and lists what an organization's registries contain."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from graphql import GraphQLError

from ckptsync.server.resolvers.aliases import set_alias
from ckptsync.server.resolvers.artifacts import artifact_by_id, find_artifact, lookup
from ckptsync.server.resolvers.collections import collection_by_id, collection_by_row, collections_of, ensure_collection
from ckptsync.server.resolvers.context import Call, Row, resolves
from ckptsync.server.resolvers.filters import column, ordered, selected
from ckptsync.server.resolvers.memberships import add_member
from ckptsync.server.resolvers.paging import page
from ckptsync.server.resolvers.projects import ensure_project, entities_projects


@resolves("Mutation.linkArtifact")
def link_artifact(_source: None, call: Call, given: Row) -> Row:
    """Add a committed version to a portfolio, which is created if it is new, as its newest version. Idempotent."""
    artifact = _linkable(call, given)
    portfolio = _portfolio(call, artifact, given)
    membership = add_member(call, portfolio, artifact["id"])
    for alias in ("latest", *(alias["alias"] for alias in given.get("aliases") or ())):
        set_alias(call, portfolio, alias, artifact["id"])
    return {"versionIndex": membership["version"], "artifactMembership": membership}


def _linkable(call: Call, given: Row) -> Row:
    if given.get("artifactID"):
        artifact: Row | None = artifact_by_id(call, given["artifactID"])
    else:
        artifact = call.row("SELECT * FROM artifacts WHERE client_id = ? ORDER BY id DESC", given.get("clientID"))
    if artifact is None or artifact["state"] != "COMMITTED":
        raise GraphQLError("only a committed artifact version can be linked")
    return artifact


def _portfolio(call: Call, artifact: Row, given: Row) -> Row:
    if given.get("artifactPortfolioID"):
        return collection_by_id(call, given["artifactPortfolioID"], "PORTFOLIO")
    if not given.get("artifactPortfolioName"):
        raise GraphQLError("the request names no portfolio")
    project = ensure_project(call, given.get("entityName"), given.get("projectName"))
    sequence = collection_by_row(call, artifact["collection_id"])
    if project["any_type"] == 0 and not _has_type(call, project, sequence["type"]):
        raise GraphQLError(f"the registry does not take artifacts of the type {sequence['type']!r}")
    return ensure_collection(call, project, given["artifactPortfolioName"], "PORTFOLIO", sequence["type"])


def _has_type(call: Call, project: Row, name: str) -> bool:
    return call.row("SELECT 1 FROM project_types WHERE project_id = ? AND name = ?", project["id"], name) is not None


@resolves("Mutation.unlinkArtifact")
def unlink_artifact(_source: None, call: Call, given: Row) -> Row:
    artifact = artifact_by_id(call, given["artifactID"])
    portfolio = collection_by_id(call, given["artifactPortfolioID"], "PORTFOLIO")
    for table in ("memberships", "aliases"):
        call.execute(
            f"DELETE FROM {table} WHERE collection_id = ? AND artifact_id = ?",  # noqa: S608 - our own names
            portfolio["id"],
            artifact["id"],
        )
    return {"success": True}


@resolves("Entity.artifactCollections")
def entity_collections(
    source: Row,
    call: Call,
    project_filters: str | None = None,
    filters: str | None = None,
    collection_types: Sequence[str] | None = None,
    first: int | None = None,
    after: str | None = None,
    order: str | None = None,
) -> Row:
    rows = collections_of(call, entities_projects(call, source["name"], project_filters), filters, order)
    return page([row for row in rows if not collection_types or row["kind"] in collection_types], first, after)


@resolves("Entity.artifactMemberships")
def entity_memberships(
    source: Row,
    call: Call,
    project_filters: str | None = None,
    collection_filters: str | None = None,
    filters: str | None = None,
    first: int | None = None,
    after: str | None = None,
    order: str | None = None,
) -> Row:
    project_ids = entities_projects(call, source["name"], project_filters)
    found: list[Row] = []
    for collection in collections_of(call, project_ids, collection_filters, None, kind="PORTFOLIO"):
        found += call.rows("SELECT * FROM memberships WHERE collection_id = ? ORDER BY version DESC", collection["id"])
    found = selected(found, filters, partial(_lookup, call))
    return page(ordered(found, order, column), first, after)


def _lookup(call: Call, membership: Row, name: str) -> Any:
    artifact = find_artifact(call, membership["artifact_id"]) or {}
    return lookup(call, {**artifact, "version": membership["version"]}, name)
