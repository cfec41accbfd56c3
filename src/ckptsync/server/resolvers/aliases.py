"""Aliases: names within a collection, each pointing to one version."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from graphql import GraphQLError

from ckptsync.server.resolvers.collections import named_collection
from ckptsync.server.resolvers.context import Call, Row, resolves, row_id_of

ALIAS = re.compile(r"[^/:\x00-\x1f]{1,128}")
VERSION = re.compile(r"v(\d{1,18})")


def set_alias(call: Call, collection: Row, alias: str, artifact_id: int) -> None:
    """Point an alias to a version. It no longer points to any other."""
    if not ALIAS.fullmatch(alias) or VERSION.fullmatch(alias):
        raise GraphQLError(f"invalid alias {alias!r}")
    call.execute("DELETE FROM aliases WHERE collection_id = ? AND alias = ?", collection["id"], alias)
    call.insert("aliases", collection_id=collection["id"], alias=alias, artifact_id=artifact_id)


def wanted_aliases(aliases: Sequence[Row] | None) -> str:
    """The aliases that a version gets when it is committed, as stored until then."""
    return json.dumps([alias["alias"] for alias in aliases or ()])


@resolves("Mutation.addAliases")
def add_aliases(_source: None, call: Call, given: Row) -> Row:
    artifact_id = row_id_of("Artifact", given["artifactID"])
    for wanted in given["aliases"]:
        collection = named_collection(call, wanted)
        member = call.row("SELECT 1 FROM memberships WHERE collection_id = ? AND artifact_id = ?", collection["id"], artifact_id)
        if member is None:
            raise GraphQLError("the artifact is not in that collection")
        set_alias(call, collection, wanted["alias"], artifact_id)
    return {"success": True}


@resolves("Mutation.deleteAliases")
def delete_aliases(_source: None, call: Call, given: Row) -> Row:
    artifact_id = row_id_of("Artifact", given["artifactID"])
    for wanted in given["aliases"]:
        call.execute(
            "DELETE FROM aliases WHERE collection_id = ? AND alias = ? AND artifact_id = ?",
            named_collection(call, wanted)["id"],
            wanted["alias"],
            artifact_id,
        )
    return {"success": True}
