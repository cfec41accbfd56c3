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
        "admin": False,
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
        "readOnlyAdmin": False,
        "privateOnly": False,
        "isPaid": False,
        "codeSavingEnabled": True,
        "defaultAccess": "PRIVATE",
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


@resolves("Query.users")
def query_users(_source: None, _call: Call, query: str | None = None) -> Row:
    """The one user, if the query is its name or email address."""
    found = user()
    matches = not query or query in (found["username"], found["email"])
    return {"edges": [{"node": found}] if matches else []}


@resolves("Entity.members")
def entity_members(_source: Row, _call: Call) -> list[Row]:
    return [{**user(), "pending": False, "accountType": "USER"}]


@resolves("Entity.storageBytes")
def entity_storage(source: Row, call: Call) -> int:
    """The sizes of all versions. Bytes that versions share are stored only once."""
    total = call.row(
        "SELECT sum(a.size) AS bytes FROM artifacts a JOIN collections c ON c.id = a.collection_id"
        " JOIN projects p ON p.id = c.project_id WHERE p.entity = ? AND a.state = 'COMMITTED'",
        source["name"],
    )
    return int(total["bytes"] or 0) if total else 0


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
