"""Accounts: the one user, its entities, and the one organization."""

from __future__ import annotations

from typing import Any

from ckptsync.server.resolvers.context import Call, Row, global_id, resolves
from ckptsync.server.storage.content_store import HASHERS

ENTITY = "local"
ORGANIZATION = "local-org"


def user() -> Row:
    return {
        "id": global_id("User", 1),
        "name": ENTITY,
        "username": ENTITY,
        "email": f"{ENTITY}@localhost",
        "entity": ENTITY,
        "admin": True,
        "flags": "{}",
        "apiKeys": {"edges": []},
        "teams": {"edges": [{"node": entity(ENTITY)}]},
    }


def entity(name: str) -> Row:
    return {
        "id": global_id("Entity", 2 if name == ORGANIZATION else 1),
        "name": name,
        "entityType": "organization" if name == ORGANIZATION else "team",
        "isTeam": name != ORGANIZATION,
        "available": False,
        "readOnly": False,
        "xxhashDigestsEnabled": "xxh128" in HASHERS,
    }


def organization() -> Row:
    return {
        "id": global_id("Organization", 1),
        "name": ORGANIZATION,
        "orgEntity": entity(ORGANIZATION),
        "advancedRegistryFeatures": {"advancedSearch": False},
        "featureFlags": [],
    }


@resolves("Query.viewer", "Project.user", "Run.user")
def viewer(_source: Any, _call: Call) -> Row:
    return user()


@resolves("Entity.user")
def entity_user(_source: Row, _call: Call) -> Row:
    return user()


@resolves("User.organizations")
def user_organizations(_source: Row, _call: Call) -> list[Row]:
    return [organization()]


@resolves("Query.entity")
def query_entity(_source: None, _call: Call, name: str | None = None) -> Row:
    return entity(name or ENTITY)


@resolves("Query.organization")
def query_organization(_source: None, _call: Call, name: str | None = None) -> Row | None:
    return organization() if name == ORGANIZATION else None


@resolves("Entity.organization")
def entity_organization(_source: Row, _call: Call) -> Row:
    return organization()
