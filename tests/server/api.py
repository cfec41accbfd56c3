"""The server's API without the client, for requests that the client would never send."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.server_process import ServerProcess

CREATE = "mutation CreateArtifact($input: CreateArtifactInput!) { createArtifact(input: $input) { artifact { id state } } }"
FILES = """mutation CreateArtifactFiles($input: CreateArtifactFilesInput!) { createArtifactFiles(input: $input) { files { edges {
    node { storagePath uploadUrl uploadHeaders
        uploadMultipartUrls { uploadID uploadUrlParts { partNumber uploadUrl } } } } } } }"""
MANIFEST = """mutation CreateArtifactManifest($id: ID!, $digest: String!) { createArtifactManifest(input: {artifactID: $id,
    digest: $digest, name: "wandb_manifest.json", entityName: "local", projectName: "p", type: FULL}) {
    artifactManifest { id file { uploadUrl uploadHeaders } } } }"""
COMMIT = """mutation CommitArtifact($id: ID!) { commitArtifact(input: {artifactID: $id}) { artifact { state versionIndex } } }"""
COMPLETE = """mutation CompleteMultipartUploadArtifact($id: ID!, $parts: [UploadPartsInput!]!, $upload: String!, $path: String!) {
    completeMultipartUploadArtifact(input: {completeMultipartAction: Complete, completedParts: $parts, artifactID: $id,
    storagePath: $path, uploadID: $upload}) { digest } }"""
VERSIONS = """query Versions($name: String!) { project(name: "p", entityName: "local") { artifactCollection(name: $name) {
    artifacts { edges { version node { digest state files { edges { node { name directUrl sizeBytes } } } } } } } } }"""


def b64md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def hexmd5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def data(answer: dict[str, Any]) -> Any:
    """The single value of an answer that has no errors."""
    assert "errors" not in answer, answer
    (value,) = answer["data"].values()
    return value


def create(server: ServerProcess, name: str, digest: str = "d" * 32, **more: Any) -> str:
    """A pending artifact's id."""
    given = {"entityName": "local", "projectName": "p", "artifactTypeName": "model", "artifactCollectionName": name}
    artifact = data(server.graphql(CREATE, input={**given, "digest": digest, "enableDigestDeduplication": True, **more}))[
        "artifact"
    ]
    return str(artifact["id"])


def announce(server: ServerProcess, artifact_id: str, name: str, content: bytes, parts: Sequence[bytes] = ()) -> dict[str, Any]:
    """Declare a file; the server's answer."""
    spec: dict[str, Any] = {"artifactID": artifact_id, "name": name, "md5": b64md5(content)}
    if parts:
        spec["uploadPartsInput"] = [{"partNumber": number, "hexMD5": hexmd5(part)} for number, part in enumerate(parts, 1)]
    node: dict[str, Any] = data(server.graphql(FILES, input={"artifactFiles": [spec]}))["files"]["edges"][0]["node"]
    return node


def put(server: ServerProcess, url: str, content: bytes, md5: str | None = None) -> int:
    headers = {"Content-MD5": md5} if md5 else {}
    return server.request("PUT", url, data=content, headers={**headers, "Content-Type": "application/octet-stream"})[0]


def put_manifest(server: ServerProcess, artifact_id: str, contents: Mapping[str, Mapping[str, Any]]) -> int:
    policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
    text = json.dumps({"version": 1, **policy, "contents": contents}).encode()
    file = data(server.graphql(MANIFEST, id=artifact_id, digest=b64md5(text)))["artifactManifest"]["file"]
    return put(server, file["uploadUrl"], text, b64md5(text))


def save(server: ServerProcess, name: str, files: Mapping[str, bytes], **more: Any) -> dict[str, Any]:
    """A whole version, as the client saves it; the answer to its commit."""
    digest = hexmd5(repr(sorted(files.items())).encode())
    artifact_id = create(server, name, digest, **more)
    for file_name, content in files.items():
        node = announce(server, artifact_id, file_name, content)
        if node["uploadUrl"]:
            assert put(server, node["uploadUrl"], content, b64md5(content)) == 200
    entries = {file_name: {"digest": b64md5(content), "size": len(content)} for file_name, content in files.items()}
    assert put_manifest(server, artifact_id, entries) == 200
    return server.graphql(COMMIT, id=artifact_id)


def versions(server: ServerProcess, name: str) -> list[dict[str, Any]]:
    """The committed versions, newest first."""
    collection = data(server.graphql(VERSIONS, name=name))["artifactCollection"]
    return list(collection["artifacts"]["edges"]) if collection else []


def contents(server: ServerProcess, version: Mapping[str, Any]) -> dict[str, bytes]:
    """The downloaded files of a version."""
    nodes = [edge["node"] for edge in version["node"]["files"]["edges"]]
    return {node["name"]: server.request("GET", node["directUrl"])[1] for node in nodes}
