"""The account through the real client: its user, its team, and what it may delete."""

from __future__ import annotations

from tests.server.api import CREATE
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
