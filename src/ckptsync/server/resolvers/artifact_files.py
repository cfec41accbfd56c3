"""The files of a version and its manifest as clients see them: names, sizes, upload and download links."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence

from graphql import GraphQLError

from ckptsync.server.resolvers.artifacts import find_artifact
from ckptsync.server.resolvers.context import Call, Row, global_id, resolves
from ckptsync.server.resolvers.paging import matching, page
from ckptsync.server.storage.content_store import key_of


def artifact_file(call: Call, artifact: Row, row: Row) -> Row:
    """A version's file as clients see it. The link of a reference is the reference itself, which clients resolve."""
    link = row["reference"] or call.links.get(f"/storage/content/{row['content']}")
    content = row["content"] or ""
    return {
        "id": global_id("ArtifactFile", row["artifact_id"]) + ":" + row["name"],
        "name": row["name"],
        "displayName": row["name"],
        "url": link,
        "directUrl": link,
        "sizeBytes": row["size"],
        "storagePath": storage_path(artifact, content) if content else None,
        "mimetype": mimetypes.guess_type(row["name"])[0] or "application/octet-stream",
        "updatedAt": artifact["updated_at"],
        "digest": row["digest"],
        "md5": row["digest"] if artifact["algorithm"] == "MANIFEST_MD5" else None,
        "artifact": artifact,
    }


def storage_path(artifact: Row, content: str) -> str:
    return f"wandb_artifacts/{artifact['id']}/{content}"


def _files(
    call: Call, artifact: Row | None, names: Sequence[str | None] | None, first: int | None, after: str | None
) -> Row | None:
    if artifact is None or artifact["state"] != "COMMITTED":
        return None
    rows = call.rows("SELECT * FROM artifact_files WHERE artifact_id = ? ORDER BY name", artifact["id"])
    found = matching(rows, names)
    return page(found, first, after, node=lambda row: artifact_file(call, artifact, row), key=lambda row: row["name"])


@resolves("Artifact.files")
def artifact_files(
    source: Row,
    call: Call,
    names: list[str] | None = None,
    first: int | None = None,
    after: str | None = None,
) -> Row | None:
    return _files(call, source, names, first, after)


@resolves("ArtifactCollectionMembership.files")
def membership_files(
    source: Row,
    call: Call,
    names: list[str] | None = None,
    first: int | None = None,
    after: str | None = None,
) -> Row | None:
    return _files(call, find_artifact(call, source["artifact_id"]), names, first, after)


def manifest_of(call: Call, artifact: Row, *, upload_key: str | None = None) -> Row:
    """An artifact's manifest as clients see it, with a link to download it, and with `upload_key` one to upload it."""
    return manifest_file(call, global_id("ArtifactManifest", artifact["id"]), artifact["manifest"], upload_key)


def manifest_file(call: Call, identifier: str, key: str | None, upload_key: str | None) -> Row:
    """A manifest as clients see it, whose bytes are the content `key` and may be uploaded as `upload_key`."""
    link = call.links.get(f"/storage/content/{key}") if key else ""
    file = {
        "id": f"{identifier}:file",
        "name": "wandb_manifest.json",
        "directUrl": link,
        "sizeBytes": (call.content.size(key) if key else None) or 0,
        "uploadHeaders": [],
    }
    if upload_key is not None:
        file["uploadUrl"] = call.links.put(f"/storage/content/{upload_key}")
        file["uploadHeaders"] = upload_headers(upload_key)
    return {"id": identifier, "file": file}


def upload_headers(key: str) -> list[str]:
    """The headers that a client has to send when it uploads the bytes of a key."""
    algorithm, _, digest = key.partition("-")
    if algorithm != "md5":
        return ["Content-Type:application/octet-stream"]
    encoded = base64.b64encode(bytes.fromhex(digest)).decode()
    return [f"Content-MD5:{encoded}", "Content-Type:application/octet-stream"]


@resolves("Artifact.currentManifest")
def current_manifest(source: Row, call: Call) -> Row | None:
    return manifest_of(call, source) if source["state"] == "COMMITTED" else None


def key_of_digest(algorithm: str, digest: str) -> str:
    """The content key of a digest in hex or base64. Raises GraphQLError if it is invalid."""
    try:
        return key_of(algorithm, digest)
    except ValueError:
        raise GraphQLError("invalid digest") from None
