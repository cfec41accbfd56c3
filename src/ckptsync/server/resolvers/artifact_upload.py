"""Creates versions: pending while files and manifest are declared and uploaded, then committed as a whole or not at all.

```
createArtifact ─▶ PENDING ─▶ createArtifactFiles, PUTs ─▶ createArtifactManifest, PUT ─▶ commitArtifact ─▶ COMMITTED vN
       └─▶ the version with that digest, if the collection has one
```
A PENDING artifact is invisible. The next createArtifact with the same digest continues it, so neither a killed client nor two
concurrent ones create a version twice.
"""

from __future__ import annotations

import json
from typing import Any

from graphql import GraphQLError

from ckptsync.server.resolvers.aliases import set_alias, wanted_aliases
from ckptsync.server.resolvers.artifact_files import key_of_digest, manifest_of, storage_path, upload_headers
from ckptsync.server.resolvers.artifacts import ALGORITHMS, artifact_by_id, checked_metadata, find_artifact
from ckptsync.server.resolvers.collections import collection_by_row, ensure_collection
from ckptsync.server.resolvers.context import Call, Row, global_id, resolves, row_id_of
from ckptsync.server.resolvers.manifest import MAX_NAME, manifest_entries
from ckptsync.server.resolvers.memberships import add_member
from ckptsync.server.resolvers.multipart import content_size, multipart_key
from ckptsync.server.resolvers.partial_manifests import (
    PARTIAL_TYPES,
    declared_part,
    find_part,
    updated_part,
    with_merged_manifest,
)
from ckptsync.server.resolvers.projects import ensure_project
from ckptsync.server.resolvers.runs import find_run
from ckptsync.server.resolvers.tags import add_tags
from ckptsync.server.storage.content_store import HASHERS

REGIONS = (None, "", "default")


@resolves("Mutation.createArtifact")
def create_artifact(_source: None, call: Call, given: Row) -> Row:
    names = [*(given.get("artifactCollectionNames") or []), *filter(None, [given.get("artifactCollectionName")])]
    if len(names) != 1:
        raise GraphQLError("an artifact belongs to exactly one collection")
    if ALGORITHMS[given["digestAlgorithm"]] not in HASHERS:
        raise GraphQLError("this server does not support that digest algorithm")
    if given.get("storageRegion") not in REGIONS:
        raise GraphQLError(f"invalid storageRegion: {given['storageRegion']}")
    checked_metadata(given.get("metadata"))
    project = ensure_project(call, given["entityName"], given["projectName"])
    collection = ensure_collection(call, project, names[0], "SEQUENCE", given["artifactTypeName"])
    run = _creator(call, project, given.get("runName"))
    # The digest of a distributed artifact is only that of what one process adds.
    deduplicate = given.get("enableDigestDeduplication") and not given.get("distributedID")
    artifact = _committed_twin(call, collection, given) if deduplicate else None
    if artifact is not None:
        _give_aliases(call, artifact, json.loads(wanted_aliases(given.get("aliases"))))
        add_tags(call, "artifact", artifact["id"], given.get("tags"))
        _add_output(call, run, artifact)
        return {"artifact": artifact}
    return {"artifact": _pending(call, collection, run, given)}


def _creator(call: Call, project: Row, name: str | None) -> Row | None:
    if not name:
        return None
    run = find_run(call, project, name)
    if run is None:
        raise GraphQLError("no such run")
    return run


def _add_output(call: Call, run: Row | None, artifact: Row) -> None:
    if run is not None:
        call.execute("INSERT OR IGNORE INTO outputs (run_id, artifact_id) VALUES (?, ?)", run["id"], artifact["id"])


def _committed_twin(call: Call, collection: Row, given: Row) -> Row | None:
    return _twin(call, collection["id"], given["digest"], given["digestAlgorithm"], "COMMITTED")


def _twin(call: Call, collection_id: int, digest: str, algorithm: str, state: str) -> Row | None:
    return call.row(
        "SELECT * FROM artifacts WHERE collection_id = ? AND digest = ? AND algorithm = ? AND state = ? ORDER BY id",
        collection_id,
        digest,
        algorithm,
        state,
    )


def _unfinished(call: Call, collection: Row, given: Row) -> Row | None:
    """The pending artifact that this request continues: that of its distributed id, else that of its digest."""
    if not given.get("distributedID"):
        return _twin(call, collection["id"], given["digest"], given["digestAlgorithm"], "PENDING")
    return call.row(
        "SELECT * FROM artifacts WHERE collection_id = ? AND distributed_id = ? AND state = 'PENDING'",
        collection["id"],
        given["distributedID"],
    )


def _pending(call: Call, collection: Row, run: Row | None, given: Row) -> Row:
    """The artifact to upload to: the one that an earlier attempt left behind, updated from this request, else a new one."""
    requested: dict[str, Any] = {
        "description": given.get("description"),
        "metadata": given.get("metadata"),
        "ttl_seconds": given.get("ttlDurationSeconds"),
        "history_step": given.get("historyStep"),
        "client_id": given.get("clientID"),
        "wanted_aliases": wanted_aliases(given.get("aliases")),
        "updated_at": call.now,
    }
    left = _unfinished(call, collection, given)
    if left is not None:
        artifact_id = left["id"]
        aliases = {*json.loads(left["wanted_aliases"]), *json.loads(requested["wanted_aliases"])}
        call.update("artifacts", artifact_id, **{**requested, "wanted_aliases": json.dumps(sorted(aliases))})
    else:
        artifact_id = call.insert(
            "artifacts",
            collection_id=collection["id"],
            digest=given["digest"],
            algorithm=given["digestAlgorithm"],
            state="PENDING",
            distributed_id=given.get("distributedID"),
            run_id=run["id"] if run else None,
            created_at=call.now,
            **requested,
        )
    artifact = call.one("SELECT * FROM artifacts WHERE id = ?", artifact_id)
    add_tags(call, "artifact", artifact_id, given.get("tags"))
    _add_output(call, run, artifact)
    return artifact


@resolves("Mutation.createArtifactFiles")
def create_artifact_files(_source: None, call: Call, given: Row) -> Row:
    """For each file, in order, the link to upload its bytes to; a null uploadUrl if they are already here."""
    edges = [{"node": _declared(call, spec)} for spec in given["artifactFiles"]]
    return {"files": {"edges": edges, "pageInfo": {"hasNextPage": False}}}


def _declared(call: Call, spec: Row) -> Row:
    artifact = artifact_by_id(call, spec["artifactID"])
    if not spec["name"] or len(spec["name"]) > MAX_NAME:
        raise GraphQLError("invalid file name")
    digest = spec.get("digest") or spec.get("md5") or ""
    parts = [key_of_digest("md5", part["hexMD5"]) for part in spec.get("uploadPartsInput") or []]
    key = multipart_key(call, parts) if parts else key_of_digest(ALGORITHMS[artifact["algorithm"]], digest)
    if artifact["state"] == "PENDING":
        call.execute(
            "INSERT OR REPLACE INTO artifact_files (artifact_id, name, digest, content) VALUES (?, ?, ?, ?)",
            artifact["id"],
            spec["name"],
            digest,
            key,
        )
    file = {
        "id": global_id("ArtifactFile", artifact["id"]) + ":" + spec["name"],
        "name": spec["name"],
        "storagePath": storage_path(artifact, key),
        "artifact": artifact,
        "uploadHeaders": [],
    }
    if content_size(call, key) is not None:
        return file
    if not parts:
        return {**file, "uploadUrl": call.links.put(f"/storage/content/{key}"), "uploadHeaders": upload_headers(key)}
    links = [call.links.put(f"/storage/content/{part}") for part in parts]
    numbered = [{"partNumber": number, "uploadUrl": link} for number, link in enumerate(links, start=1)]
    return {
        **file,
        "uploadUrl": links[0],
        "uploadHeaders": ["Content-Type:application/octet-stream"],
        "uploadMultipartUrls": {"uploadID": key, "uploadUrlParts": numbered},
    }


@resolves("Mutation.createArtifactManifest")
def create_artifact_manifest(_source: None, call: Call, given: Row) -> Row:
    artifact = artifact_by_id(call, given["artifactID"])
    if given.get("type") in PARTIAL_TYPES:
        return {"artifactManifest": declared_part(call, artifact, given)}
    return _declared_manifest(call, artifact, given["digest"])


@resolves("Mutation.updateArtifactManifest")
def update_artifact_manifest(_source: None, call: Call, given: Row) -> Row:
    part = find_part(call, given["artifactManifestID"])
    if part is not None:
        return {"artifactManifest": updated_part(call, part, given.get("digest"))}
    artifact = find_artifact(call, row_id_of("ArtifactManifest", given["artifactManifestID"]))
    if artifact is None or artifact["state"] == "DELETED":
        raise GraphQLError("no such artifact manifest")
    return _declared_manifest(call, artifact, given.get("digest"))


def _declared_manifest(call: Call, artifact: Row, digest: str | None) -> Row:
    """Clients declare a manifest twice: without a digest to get its id, then with the MD5 of its bytes to upload it."""
    if not digest:
        return {"artifactManifest": manifest_of(call, artifact)}
    key = key_of_digest("md5", digest)
    if artifact["state"] == "PENDING":
        call.update("artifacts", artifact["id"], manifest=key)
    return {"artifactManifest": manifest_of(call, artifact, upload_key=key)}


@resolves("Mutation.commitArtifact")
def commit_artifact(_source: None, call: Call, given: Row) -> Row:
    """Make a pending artifact the next version if its manifest and every file in it are here. Idempotent."""
    artifact = artifact_by_id(call, given["artifactID"])
    if artifact["state"] == "COMMITTED":
        return {"artifact": artifact}
    artifact = with_merged_manifest(call, artifact)
    entries = manifest_entries(call, artifact)
    call.execute("DELETE FROM artifact_files WHERE artifact_id = ?", artifact["id"])
    call.connection.executemany(
        "INSERT INTO artifact_files (artifact_id, name, digest, size, content, reference) VALUES (?, ?, ?, ?, ?, ?)",
        [(artifact["id"], *entry) for entry in entries],
    )
    call.update(
        "artifacts",
        artifact["id"],
        state="COMMITTED",
        size=sum(entry[2] for entry in entries),
        file_count=len(entries),
        updated_at=call.now,
    )
    add_member(call, collection_by_row(call, artifact["collection_id"]), artifact["id"])
    _give_aliases(call, artifact, json.loads(artifact["wanted_aliases"]))
    return {"artifact": find_artifact(call, artifact["id"])}


def _give_aliases(call: Call, artifact: Row, aliases: list[str]) -> None:
    collection = collection_by_row(call, artifact["collection_id"])
    for alias in aliases:
        set_alias(call, collection, alias, artifact["id"])
