"""Versions to which several manifests contribute: those of several processes, and those that add to the version before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.server.api import COMMIT, announce, b64md5, contents, create, data, put, save, versions
from tests.server.conftest import Client
from tests.server_process import ServerProcess

DECLARE = """mutation CreateArtifactManifest($id: ID!, $type: ArtifactManifestType, $base: ID) { createArtifactManifest(input: {
    artifactID: $id, digest: "", name: "wandb_manifest.json", entityName: "local", projectName: "p", type: $type,
    baseArtifactID: $base}) { artifactManifest { id } } }"""
UPDATE = """mutation UpdateArtifactManifest($id: ID!, $digest: String!) { updateArtifactManifest(input: {artifactManifestID: $id,
    digest: $digest}) { artifactManifest { file { uploadUrl } } } }"""


def _add_manifest(
    server: ServerProcess, artifact_id: str, files: dict[str, bytes], kind: str = "PATCH", base: str | None = None
) -> None:
    """Upload files and a partial manifest of them."""
    for name, content in files.items():
        node = announce(server, artifact_id, name, content)
        if node["uploadUrl"]:
            assert put(server, node["uploadUrl"], content, b64md5(content)) == 200
    policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
    entries = {name: {"digest": b64md5(content), "size": len(content)} for name, content in files.items()}
    text = json.dumps({"version": 1, **policy, "contents": entries}).encode()
    manifest_id = data(server.graphql(DECLARE, id=artifact_id, type=kind, base=base))["artifactManifest"]["id"]
    file = data(server.graphql(UPDATE, id=manifest_id, digest=b64md5(text)))["artifactManifest"]["file"]
    assert put(server, file["uploadUrl"], text, b64md5(text)) == 200


@pytest.mark.slow
def test_processes_that_share_a_distributed_id_add_to_one_version(client: Client) -> None:
    reported = client(
        """
import subprocess
node = '''
import sys, pathlib, wandb
rank = sys.argv[1]
path = pathlib.Path(f"shard-{rank}.bin")
path.write_bytes(rank.encode() * 1000)
with wandb.init(project="d", group="nodes", settings=wandb.Settings(console="off", silent=True)) as run:
    made = wandb.Artifact("shards", "model")
    made.add_file(str(path))
    run.upsert_artifact(made, distributed_id="save-1").wait()
'''
nodes = [subprocess.Popen([sys.executable, "-c", node, str(rank)]) for rank in range(3)]
assert [process.wait() for process in nodes] == [0, 0, 0]
api = wandb.Api()
report(before=api.artifact_exists("local/d/shards:latest"))
with wandb.init(project="d", group="nodes", settings=quiet) as run:
    run.finish_artifact(wandb.Artifact("shards", "model"), distributed_id="save-1").wait()
found = wandb.Api().artifact("local/d/shards:latest")
root = pathlib.Path(found.download(root=str(work / "down"), skip_cache=True))
report(version=found.version, files=sorted(path.name for path in root.iterdir()), size=found.size)
report(whole=found.verify(root=str(root)), versions=len(list(wandb.Api().artifacts("model", "local/d/shards"))))
"""
    )

    assert reported["before"] is False
    assert reported["files"] == ["shard-0.bin", "shard-1.bin", "shard-2.bin"]
    assert (reported["version"], reported["versions"], reported["size"]) == ("v0", 1, 3000)
    assert reported["whole"] is None


def test_an_incremental_artifact_adds_to_the_version_before(client: Client) -> None:
    reported = client(
        """
for number in range(3):
    with wandb.init(project="i", settings=quiet) as run:
        made = wandb.Artifact("growing", "dataset", incremental=True)
        made.add_dir(str(folder(**{f"part{number}": f"data {number}", "newest": str(number)})))
        run.log_artifact(made).wait()
found = wandb.Api().artifact("local/i/growing:latest")
root = pathlib.Path(found.download(root=str(work / "down"), skip_cache=True))
report(version=found.version, files={path.name: path.read_text() for path in root.iterdir()})
report(digest=found.digest == found.manifest.digest())
"""
    )

    assert reported["files"] == {"part0": "data 0", "part1": "data 1", "part2": "data 2", "newest": "2"}
    assert reported["version"] == "v2"
    assert reported["digest"] is True


def test_a_process_that_died_before_its_manifest_leaves_nothing_in_the_version(server: ServerProcess) -> None:
    one = create(server, "shared", "1" * 32, distributedID="d")
    two = create(server, "shared", "2" * 32, distributedID="d")
    announce(server, two, "lost.bin", b"never uploaded")
    _add_manifest(server, one, {"kept.bin": b"kept"})

    answer = data(server.graphql(COMMIT, id=one))

    assert one == two
    assert answer["artifact"]["state"] == "COMMITTED"
    assert contents(server, versions(server, "shared")[0]) == {"kept.bin": b"kept"}


def test_a_version_without_one_uploaded_manifest_is_not_committed(server: ServerProcess) -> None:
    artifact = create(server, "empty", distributedID="e")
    data(server.graphql(DECLARE, id=artifact, type="PATCH"))

    answer = server.graphql(COMMIT, id=artifact)

    assert answer["errors"][0]["message"] == "the artifact's manifest has not been uploaded"
    assert versions(server, "empty") == []


def test_a_distributed_id_that_was_committed_starts_the_next_version(server: ServerProcess) -> None:
    for content in (b"first", b"second"):
        artifact = create(server, "again", "3" * 32, distributedID="a", enableDigestDeduplication=True)
        _add_manifest(server, artifact, {"file": content})
        data(server.graphql(COMMIT, id=artifact))

    assert [contents(server, version) for version in versions(server, "again")] == [{"file": b"second"}, {"file": b"first"}]


def test_an_incremental_manifest_adds_to_the_base_that_it_names(server: ServerProcess) -> None:
    save(server, "based", {"old": b"old"})
    base = data(server.graphql("""query { project(name: "p", entityName: "local") { artifact(name: "based:v0") { id } } }"""))
    save(server, "based", {"other": b"other"})
    artifact = create(server, "based", "4" * 32)
    _add_manifest(server, artifact, {"new": b"new"}, "INCREMENTAL", base["artifact"]["id"])

    data(server.graphql(COMMIT, id=artifact))

    assert contents(server, versions(server, "based")[0]) == {"old": b"old", "new": b"new"}


def test_partial_manifests_are_deleted_with_their_artifact(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        artifact: Any = create(server, "gone", "5" * 32, distributedID="g")
        _add_manifest(server, artifact, {"file": b"content"})
        data(server.graphql(COMMIT, id=artifact))
        query = "mutation($id: ID!) { deleteArtifact(input: {artifactID: $id, deleteAliases: true}) { artifact { state } } }"

        data(server.graphql(query, id=artifact))

        assert [path for path in (server.data_dir / "content").rglob("*") if path.is_file()] == []
