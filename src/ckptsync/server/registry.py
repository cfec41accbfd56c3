"""Linking versions into portfolios and registry collections, and reading what an organization's registries hold."""

from __future__ import annotations

from collections.abc import Sequence

from graphql import GraphQLError, GraphQLResolveInfo

from .accounts import ensure_project, entities_projects
from .artifacts import artifact_by_id, find_artifact, lookup
from .collection import (
    add_member,
    collection_by_id,
    collection_by_row,
    collections_of,
    ensure_collection,
    set_alias,
)
from .context import Call, Row, call_of, resolves
from .filters import matches, ordered, parse_filters
from .paging import page


@resolves("Mutation.linkArtifact")
def link_artifact(_source: None, info: GraphQLResolveInfo, input: Row) -> Row:  # noqa: A002 - the schema's name
    """Put a committed version into a portfolio (made if it is new) as its newest; linking it again gives the same place."""
    call = call_of(info)
    artifact = _linkable(call, input)
    portfolio = _portfolio(call, artifact, input)
    membership = add_member(call, portfolio, artifact["id"])
    for alias in ("latest", *(given["alias"] for given in input.get("aliases") or ())):
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
        raise GraphQLError("which portfolio?")
    project = ensure_project(call, given.get("entityName"), given.get("projectName"))
    sequence = collection_by_row(call, artifact["collection_id"])
    return ensure_collection(call, project, given["artifactPortfolioName"], "PORTFOLIO", sequence["type"])


@resolves("Mutation.unlinkArtifact")
def unlink_artifact(_source: None, info: GraphQLResolveInfo, input: Row) -> Row:  # noqa: A002 - the schema's name
    call = call_of(info)
    artifact = artifact_by_id(call, input["artifactID"])
    portfolio = collection_by_id(call, input["artifactPortfolioID"], "PORTFOLIO")
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
    info: GraphQLResolveInfo,
    projectFilters: str | None = None,  # noqa: N803 - the schema's name
    filters: str | None = None,
    collectionTypes: Sequence[str] | None = None,  # noqa: N803 - the schema's name
    first: int | None = None,
    after: str | None = None,
    order: str | None = None,
) -> Row:
    call = call_of(info)
    rows = collections_of(call, entities_projects(call, source["name"], projectFilters), filters, order)
    return page([row for row in rows if not collectionTypes or row["kind"] in collectionTypes], first, after)


@resolves("Entity.artifactMemberships")
def entity_memberships(
    source: Row,
    info: GraphQLResolveInfo,
    projectFilters: str | None = None,  # noqa: N803 - the schema's name
    collectionFilters: str | None = None,  # noqa: N803 - the schema's name
    filters: str | None = None,
    first: int | None = None,
    after: str | None = None,
    order: str | None = None,
) -> Row:
    call = call_of(info)
    condition = parse_filters(filters)
    found = []
    for collection in collections_of(
        call, entities_projects(call, source["name"], projectFilters), collectionFilters, None, kind="PORTFOLIO"
    ):
        for membership in call.rows("SELECT * FROM memberships WHERE collection_id = ? ORDER BY version DESC", collection["id"]):
            artifact = {**(find_artifact(call, membership["artifact_id"]) or {}), "version": membership["version"]}
            if matches(condition, lambda name, artifact=artifact: lookup(call, artifact, name)):
                found.append(membership)
    return page(ordered(found, order, lambda row, name: row.get(name)), first, after)
