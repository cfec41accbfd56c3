"""Runs through the real client: login, init, resume, history, states, listings, edits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Client, run_client
from tests.server_process import ServerProcess

STORY = """
config = {"lr": 0.1, "model": {"layers": 2}}
run = wandb.init(project="trials", id="first", resume="allow", config=config, tags=["a"], settings=quiet)
for step in range(5):
    run.log({"loss": 1 / (step + 1), "even" if step % 2 == 0 else "odd": step})
run.log({"table": wandb.Table(columns=["x"], data=[[1], [2]]), "worst": float("nan")})
run.summary["best"] = 0.2
run.alert("look", text="at this")
run.finish()

api = wandb.Api()
seen = api.run("local/trials/first")
report(first_state=seen.state, config=seen.config, summary=dict(seen.summary), tags=seen.tags)
report(scan=list(seen.scan_history(keys=["loss"])), bounds=[row["_step"] for row in seen.scan_history(min_step=1, max_step=3)])
report(paged=[row["_step"] for row in seen.scan_history(page_size=2)])
report(keys_paged=list(seen.scan_history(keys=["odd"], page_size=2)))
report(history=seen.history(pandas=False), sampled=seen.history(samples=3, pandas=False))
report(keyed=seen.history(keys=["loss"], pandas=False))
report(files=sorted(file.name for file in seen.files()), metadata=bool(seen.metadata), last_step=seen.lastHistoryStep)
table = next(file for file in seen.files() if file.name.startswith("media/table"))
report(table=json.load(table.download(root=str(folder()), replace=True)))

report(never=error_of(wandb.init, project="trials", id="first", resume="never", settings=quiet))
report(must=error_of(wandb.init, project="trials", id="unknown", resume="must", settings=quiet))
wandb.teardown()  # wandb-core keeps the id of an init that failed
report(runs_after_must=[run.id for run in wandb.Api().runs("local/trials")])

again = wandb.init(project="trials", id="first", resume="must", settings=quiet)
report(starting_step=again.starting_step, resumed=again.resumed, resumed_config=dict(again.config))
report(while_running=wandb.Api().run("local/trials/first").state)
again.log({"loss": 0.05})
again.finish()
report(after_resume=[[row["_step"], row["loss"]] for row in wandb.Api().run("local/trials/first").scan_history(keys=["loss"])])

failed = wandb.init(project="trials", id="failed", resume="allow", group="g", job_type="train", settings=quiet)
failed.finish(exit_code=3)
preempted = wandb.init(project="trials", id="preempted", resume="allow", settings=quiet)
preempted.mark_preempting()
preempted.log({"loss": 1})
deadline = time.time() + 40
while (state := wandb.Api().run("local/trials/preempted").state) == "running" and time.time() < deadline:
    time.sleep(0.2)
report(preempting=state)
preempted.finish(exit_code=1)
report(failed=wandb.Api().run("local/trials/failed").state, preempted=wandb.Api().run("local/trials/preempted").state)

api = wandb.Api()
ids = lambda **arguments: [run.id for run in wandb.Api().runs("local/trials", **arguments)]
report(
    newest_first=ids(order="-created_at"),
    small_pages=ids(per_page=1),
    by_state=ids(filters={"state": "failed"}),
    by_config=ids(filters={"config.lr": {"$lt": 1}}),
    by_summary=ids(filters={"$or": [{"summary_metrics.best": 0.2}, {"display_name": "none"}]}),
    by_group=ids(filters={"group": "g", "jobType": "train", "display_name": {"$regex": "^fail"}}),
    by_nothing=ids(filters={"config.lr": 5}),
    count=len(wandb.Api().runs("local/trials", filters={"state": {"$ne": "failed"}})),
)

edited = api.run("local/trials/failed")
edited.config["note"] = 1
edited.tags.append("seen")
edited.summary["score"] = 1.5
edited.update()
edited = wandb.Api().run("local/trials/failed")
report(edited=[edited.config, "seen" in edited.tags, edited.summary["score"], edited.state])
path = folder(up__txt="uploaded")
edited.upload_file(str(path / "up.txt"), root=str(path))
report(uploaded=edited.file("up.txt").download(root=str(folder()), replace=True).read())
edited.file("up.txt").delete()
report(files_left=[file.name for file in edited.files() if file.name == "up.txt"])
edited.delete()
report(after_delete=ids(), viewer=wandb.Api().viewer.username)
report(projects=[project.name for project in wandb.Api().projects("local")])
"""


@pytest.fixture(scope="module")
def reported(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_client(STORY, server, tmp_path_factory.mktemp("story") / "client")


def test_a_run_keeps_its_config_summary_and_tags(reported: dict[str, Any]) -> None:
    assert reported["config"] == {"lr": 0.1, "model": {"layers": 2}}
    assert reported["summary"]["best"] == 0.2
    assert reported["summary"]["_step"] == 5
    assert reported["tags"] == ["a"]


def test_a_run_that_ended_with_exit_code_0_is_finished(reported: dict[str, Any]) -> None:
    assert reported["first_state"] == "finished"


def test_a_run_that_ended_with_another_exit_code_failed(reported: dict[str, Any]) -> None:
    assert reported["failed"] == "failed"


def test_a_preempting_run_is_preempted_when_it_ends(reported: dict[str, Any]) -> None:
    assert [reported["preempting"], reported["preempted"]] == ["preempting", "preempted"]


def test_scan_history_gives_every_row_once(reported: dict[str, Any]) -> None:
    assert [row["loss"] for row in reported["scan"]] == [1 / (step + 1) for step in range(5)]
    assert reported["paged"] == [0, 1, 2, 3, 4, 5]
    assert reported["keys_paged"] == [{"_step": 1, "odd": 1}, {"_step": 3, "odd": 3}]


def test_scan_history_keeps_to_its_bounds(reported: dict[str, Any]) -> None:
    assert reported["bounds"] == [1, 2]


def test_history_is_whole_sampled_or_cut_to_keys(reported: dict[str, Any]) -> None:
    assert [row["_step"] for row in reported["history"]] == [0, 1, 2, 3, 4, 5]
    assert len(reported["sampled"]) == 3
    assert reported["keyed"][0] == {"_step": 0, "loss": 1}
    assert reported["last_step"] == 5


def test_files_and_tables_of_a_run_can_be_read_back(reported: dict[str, Any]) -> None:
    assert {"config.yaml", "wandb-metadata.json", "wandb-summary.json"} <= {*reported["files"]}
    assert reported["table"]["data"] == [[1], [2]]
    assert reported["metadata"]


def test_resume_never_on_an_existing_run_is_the_clients_usage_error(reported: dict[str, Any]) -> None:
    assert reported["never"][0] == "UsageError"


def test_resume_must_on_an_unknown_run_is_the_clients_usage_error_and_makes_no_run(reported: dict[str, Any]) -> None:
    assert reported["must"][0] == "UsageError"
    assert reported["runs_after_must"] == ["first"]


def test_a_resumed_run_continues_at_the_next_step_with_its_config(reported: dict[str, Any]) -> None:
    assert reported["starting_step"] == 6
    assert reported["resumed"]
    assert reported["resumed_config"] == {"lr": 0.1, "model": {"layers": 2}}
    assert reported["after_resume"] == [[step, 1 / (step + 1)] for step in range(5)] + [[6, 0.05]]


def test_a_resumed_run_is_running_again(reported: dict[str, Any]) -> None:
    assert reported["while_running"] == "running"


def test_runs_are_listed_in_order_and_in_pages(reported: dict[str, Any]) -> None:
    assert reported["newest_first"] == ["preempted", "failed", "first"]
    assert reported["small_pages"] == ["first", "failed", "preempted"]
    assert reported["count"] == 2


def test_runs_are_filtered_by_state_config_summary_and_columns(reported: dict[str, Any]) -> None:
    assert reported["by_state"] == ["failed"]
    assert reported["by_config"] == ["first"]
    assert reported["by_summary"] == ["first"]
    assert reported["by_group"] == ["failed"]
    assert reported["by_nothing"] == []


def test_a_run_can_be_edited_and_stays_ended(reported: dict[str, Any]) -> None:
    assert reported["edited"] == [{"note": 1}, True, 1.5, "failed"]


def test_files_are_added_to_and_deleted_from_a_run_through_the_public_api(reported: dict[str, Any]) -> None:
    assert reported["uploaded"] == "uploaded"
    assert reported["files_left"] == []


def test_a_deleted_run_is_gone(reported: dict[str, Any]) -> None:
    assert reported["after_delete"] == ["first", "preempted"]


def test_the_one_user_and_its_projects_are_there(reported: dict[str, Any]) -> None:
    assert reported["viewer"] == "local"
    assert reported["projects"] == ["trials"]


def test_a_wrong_key_is_an_authentication_error(client: Client) -> None:
    reported = client(
        """
report(login=error_of(wandb.login, key="0" * 40, verify=True, relogin=True))
report(api=error_of(lambda: wandb.Api().run("local/trials/first")))
report(init=error_of(wandb.init, project="trials", settings=quiet))
""",
        WANDB_API_KEY="1" * 40,
    )

    assert reported["login"][0] == "AuthenticationError"
    assert reported["api"][0] == "AuthenticationError"
    assert reported["init"] == ["CommError", "the API key is not valid for this server"]


def test_the_right_key_logs_in(client: Client) -> None:
    reported = client("report(login=wandb.login(key=os.environ['WANDB_API_KEY'], verify=True, relogin=True))")

    assert reported["login"] is True


def test_a_runs_file_is_found_by_the_path_that_it_was_saved_from(client: Client) -> None:
    reported = client(
        """
pathlib.Path("saved file.txt").write_text("saved")
with wandb.init(project="paths", id="one", settings=quiet) as run:
    run.save("./saved file.txt")
run = wandb.Api().run("local/paths/one")
report(names=[run.file(name).name for name in ("saved file.txt", "./saved file.txt")], missing=error_of(run.file, "./other.txt"))
"""
    )

    assert reported["names"] == ["saved file.txt", "saved file.txt"]
    assert reported["missing"] is not None


def test_the_history_keys_name_each_value_of_a_nested_dict(client: Client) -> None:
    reported = client(
        """
with wandb.init(project="nested", id="one", settings=quiet) as run:
    run.log({"eval": {"loss": 0.5, "by": {"task": 2}}, "text": wandb.Html("x")})
report(keys=wandb.Api().run("local/nested/one").history_keys["keys"])
"""
    )

    keys = {name: known for name, known in reported["keys"].items() if not name.startswith("_")}
    assert sorted(keys) == ["eval.by.task", "eval.loss", "text"]
    assert [keys["eval.loss"]["previousValue"], keys["eval.by.task"]["previousValue"]] == [0.5, 2]


@pytest.mark.slow
def test_wandb_verify_finds_nothing_wrong_with_runs_and_artifacts(server: ServerProcess, tmp_path: Path) -> None:
    home = {name: str(tmp_path) for name in ("HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "CKPTSYNC_"))}

    verified = subprocess.run(
        [sys.executable, "-m", "wandb", "verify", "--host", server.url],
        env=kept | server.environment | home,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    checks = dict(re.findall(r"^Checking (.+?)\.+ *(\S)", verified.stdout, re.MULTILINE))
    assert {name for name, mark in checks.items() if mark == "✅"} >= {
        "if logged in",
        "signed URL upload",
        "ability to send large payloads through proxy",
        "wandb package version is up to date",
        "logged metrics, saving and downloading a file",
        "artifact save and download workflows",
    }, f"{verified.stdout}\n{verified.stderr}"


def test_a_run_is_marked_as_failed_once_and_requeued(client: Client) -> None:
    reported = client(
        """
made = wandb.Api().create_run(project="states")
run = wandb.Api().run(f"local/states/{made.id}")
report(first=run.update_state("failed"), again=error_of(run.update_state, "failed"))
report(requeued=run.update_state("pending"), state=wandb.Api().run(f"local/states/{made.id}").state)
"""
    )

    assert [reported["first"], reported["requeued"], reported["state"]] == [True, True, "pending"]
    assert "invalid state transition" in reported["again"][1]


def test_a_run_without_a_sign_of_life_has_crashed(tmp_path: Path) -> None:
    upsert = "mutation UpsertBucket($name: String) { upsertBucket(input: {name: $name}) { bucket { id } } }"
    state = """query State($filters: JSONString) { project(name: "uncategorized") {
        run(name: "silent") { state } runs(filters: $filters) { edges { node { name } } } } }"""
    filters = '{"state": "crashed"}'
    with ServerProcess(tmp_path / "data", crash_after=0.5) as server:
        server.graphql(upsert, name="silent")
        before = server.graphql(state, filters=filters)["data"]["project"]["run"]["state"]
        time.sleep(0.7)
        after = server.graphql(state, filters=filters)["data"]["project"]
        status, _ = server.request("POST", "/files/local/uncategorized/silent/file_stream", data=b"{}")
        again = server.graphql(state, filters=filters)["data"]["project"]["run"]["state"]

    assert before == "running"
    assert after == {"run": {"state": "crashed"}, "runs": {"edges": [{"node": {"name": "silent"}}]}}
    assert [status, again] == [200, "running"]


def test_a_client_of_wandb_0_28_that_is_about_to_log_an_image_gets_an_answer(server: ServerProcess) -> None:
    fields = "cliVersionInfo latestLocalVersionInfo { outOfDate latestVersionString versionOnThisInstanceString }"

    found = server.graphql(f"query ServerInfo {{ serverInfo {{ {fields} }} }}")

    assert found["data"]["serverInfo"]["cliVersionInfo"]["max_cli_version"]
    assert found["data"]["serverInfo"]["latestLocalVersionInfo"] is None
