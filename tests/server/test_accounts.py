"""The account through the real client: its user, its team, and what it may delete."""

from __future__ import annotations

import pytest

from tests.server.api import CREATE, data
from tests.server.conftest import Client
from tests.server_process import ServerProcess


def test_the_public_api_shows_the_team_and_its_member(client: Client) -> None:
    reported = client(
        """
api = wandb.Api()
team = api.team("local")
report(team=team.name, members=[[member.name, member.account_type] for member in team.members], bytes=team.storage_bytes)
report(user=[api.user("local").username, api.user("nobody")], viewer=[api.viewer.admin, api.viewer.teams])
"""
    )

    assert reported["team"] == "local"
    assert reported["members"] == [["local", "USER"]]
    assert reported["bytes"] == 0
    assert reported["user"] == ["local", None]
    assert reported["viewer"] == [False, ["local"]]


def test_a_run_of_any_project_can_be_deleted_and_deleting_it_again_changes_nothing(client: Client) -> None:
    reported = client(
        """
api = wandb.Api()
for project in ("one", "two"):
    wandb.init(project=project, id="same", settings=quiet).finish()
second = api.run("local/two/same")
second.delete()
report(again=error_of(second.delete), left=[run.id for run in api.runs("local/one")], gone=len(api.runs("local/two")))
api.run("local/one/same").delete(delete_artifacts=True)
report(empty=len(wandb.Api().runs("local/one")))
"""
    )

    assert reported == {"again": None, "left": ["same"], "gone": 0, "empty": 0}


def test_a_region_that_the_server_does_not_have_is_an_error(server: ServerProcess) -> None:
    given = {"entityName": "local", "projectName": "p", "artifactCollectionName": "c", "artifactTypeName": "model"}

    answer = server.graphql(CREATE, input={**given, "digest": "d" * 32, "storageRegion": "coreweave-us"})

    assert answer["errors"][0]["message"] == "invalid storageRegion: coreweave-us"


@pytest.mark.slow
def test_a_registry_is_renamed_and_deleted_with_all_that_is_in_it(client: Client, server: ServerProcess) -> None:
    reported = client(
        """
api = wandb.Api()
registry = api.create_registry("models", visibility="organization", organization="local-org")
with wandb.init(project="source", settings=quiet) as run:
    version = run.log_artifact(artifact("ck", folder(a="content"))).wait()
    version.link("wandb-registry-models/good")
    run.log({"x": 1})
registry.name = "renamed"
registry.save()
report(old=error_of(api.registry, "models", "local-org")[0], new=api.registry("renamed", "local-org").name)
report(linked=wandb.Api().artifact("local-org/wandb-registry-renamed/good:v0").source_version)
api.create_registry("taken", visibility="organization", organization="local-org")
registry.name = "taken"
report(taken=error_of(registry.save) is not None)
registry = api.registry("renamed", "local-org")
registry.delete()
report(again=error_of(registry.delete)[0])
report(deleted=error_of(api.registry, "renamed", "local-org")[0], kept=wandb.Api().artifact("local/source/ck:v0").version)
"""
    )

    assert reported["old"] == reported["deleted"] == reported["again"] == "ValueError"
    assert (reported["new"], reported["linked"], reported["kept"]) == ("renamed", "v0", "v0")
    assert reported["taken"] is True
    project = data(server.graphql('{ project(name: "source", entityName: "local") { id } }'))
    before = [path for path in (server.data_dir / "content").rglob("*") if path.is_file()]

    deleted = data(server.graphql("mutation($id: String!) { deleteModel(input: {id: $id}) { success } }", id=project["id"]))

    assert before
    assert deleted == {"success": True}
    assert [path for path in (server.data_dir / "content").rglob("*") if path.is_file()] == []
    assert data(server.graphql('{ project(name: "source", entityName: "local") { id } }')) is None


@pytest.mark.slow
def test_a_registry_keeps_the_artifact_types_that_it_was_given(client: Client) -> None:
    reported = client(
        """
api = wandb.Api()
registry = api.create_registry("typed", visibility="organization", organization="local-org", artifact_types=["model"])
registry.artifact_types.append("dataset")
registry.save()
found = api.registry("typed", "local-org")
report(types=sorted(found.artifact_types), all=found.allow_all_artifact_types)
with wandb.init(project="source", settings=quiet) as run:
    version = run.log_artifact(artifact("ck", folder(a="a"), "model")).wait()
    other = run.log_artifact(artifact("txt", folder(a="b"), "text")).wait()
version.link("wandb-registry-typed/good")
report(refused=error_of(other.link, "wandb-registry-typed/bad") is not None)
report(linked=[collection.name for collection in found.collections()])
"""
    )

    assert reported == {"types": ["dataset", "model"], "all": False, "refused": True, "linked": ["good"]}
