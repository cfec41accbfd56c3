"""Every command about a run in every state: no account, an empty project, an unknown run, no network, a version that went."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ckptsync.cli import COMMANDS
from ckptsync.upload.spool import Spool
from tests.checkpoints import make_checkpoint
from tests.integration.conftest import Tool, address, kept, make_run, no_faults, publish, refusal, wait_for
from tests.server.api import data
from tests.server_process import ServerProcess

__all__ = ["no_faults"]

ASKING: list[list[str]] = [
    ["list", "RUN"],
    ["pull", "RUN", "DEST"],
    ["verify", "RUN", "--remote"],
    ["prune", "RUN", "--keep-last", "1", "--yes"],
    ["promote", "RUN", "model/x"],
]
"""The commands that ask the store about a run."""

QUICK = ("list",)
EACH = pytest.mark.parametrize(
    "words",
    [pytest.param(words, id=words[0], marks=[] if words[0] in QUICK else pytest.mark.slow) for words in ASKING],
)


def said(words: list[str], run: str, folder: Path) -> list[str]:
    return [{"RUN": run, "DEST": str(folder / "dest")}.get(word, word) for word in words]


@EACH
def test_without_an_account_both_ways_out_are_named(tmp_path: Path, words: list[str]) -> None:
    done = Tool(tmp_path / "nobody")(*said(words, "r", tmp_path))

    assert done.returncode == 3
    assert "wandb login" in refusal(done)
    assert "--local" in refusal(done)
    assert not (tmp_path / "dest").exists()


@EACH
def test_an_empty_project_is_told_from_an_unknown_run(
    tool: Tool, server: ServerProcess, tmp_path: Path, words: list[str]
) -> None:
    make_run(server, "known-run", project="other")

    empty = tool(*said(words, "r", tmp_path), "--project", "none-such")
    unknown = tool(*said(words, "known-rum", tmp_path), "--project", "other")

    assert (empty.returncode, unknown.returncode) == (4, 4)
    assert "local/none-such/r" in refusal(empty)
    assert "Did you mean known-run?" in refusal(unknown)


@EACH
def test_a_run_without_a_version_is_told(tool: Tool, server: ServerProcess, tmp_path: Path, words: list[str]) -> None:
    make_run(server, "young")

    done = tool(*said(words, "young", tmp_path))

    assert done.returncode == 4
    assert "has no checkpoint yet" in refusal(done)


@pytest.mark.slow
@EACH
def test_no_network_is_given_up_in_bounded_time(tool: Tool, tmp_path: Path, words: list[str]) -> None:
    began = time.monotonic()

    done = tool(*said(words, "r", tmp_path), WANDB_BASE_URL="http://127.0.0.1:9", timeout=90)

    assert done.returncode == 6
    assert "Check the network" in refusal(done)
    assert time.monotonic() - began < 60


@EACH
def test_what_is_no_run_is_refused_before_anything_is_asked(tool: Tool, tmp_path: Path, words: list[str]) -> None:
    done = tool(*said(words, "a/b", tmp_path), WANDB_BASE_URL="http://127.0.0.1:9")

    assert done.returncode == 2
    assert "is not a run" in refusal(done)


def history(server: ServerProcess, folder: Path, run_id: str, steps: range) -> None:
    """A run with a version of each of these steps, as ckptsync would have made them."""
    make_run(server, run_id)
    for step in steps:
        made = make_checkpoint(folder / run_id, step, content=run_id, saved_at=time.time() - 10_000 + step)
        files = [path for path in made.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        ours: dict[str, Any] = {"files": len(files), "bytes": size, "resumable": True, "run": run_id}
        publish(server, made, run_id, ours=ours)


def steps(tool: Tool, run_id: str) -> list[int]:
    return [row["step"] for row in tool.json("list", run_id)]


@pytest.mark.slow
def test_prune_shows_why_each_version_stays_and_deletes_the_others(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    history(server, tmp_path, "long", range(10, 90, 10))
    tool.json("promote", "long:step-20", "model/kept")
    mark(tool, "long", "v0", "mine")

    plan = tool("prune", "long", "--keep-last", "1", "--keep-every", "40", "--dry-run")
    untouched = steps(tool, "long")
    unasked = tool("prune", "long", "--keep-last", "1")
    done = tool.json("prune", "long", "--keep-last", "1", "--keep-every", "40", "--yes")

    assert plan.returncode == 0, plan.stderr
    assert untouched == [80, 70, 60, 50, 40, 30, 20, 10]
    assert unasked.returncode == 2
    assert "--yes" in refusal(unasked)
    why = {row["step"]: row["reasons"] for row in done["versions"]}
    assert why == {
        80: ["latest", "last 1", "every 40 steps", "newest verified"],
        70: ["newest verified"],
        60: [],
        50: [],
        40: ["every 40 steps"],
        30: [],
        20: ["linked"],
        10: ["alias mine"],
    }
    for reason in ("alias mine", "linked", "every 40 steps", "newest verified", "3 to delete"):
        assert reason in plan.stdout
    assert steps(tool, "long") == [80, 70, 40, 20, 10]
    assert done["freed_bytes"] == sum(row["bytes"] for row in done["versions"] if row["deleted"])
    assert all(row["deleted"] == (not row["kept"]) for row in done["versions"])


def mark(tool: Tool, run_id: str, version: str, alias: str) -> None:
    """Give a version an alias, as a user does."""
    from tests.workflow.conftest import python

    python(
        tool,
        f"import wandb; a = wandb.Api().artifact('local/tests/checkpoint-{run_id}:{version}');"
        f" a.aliases.append('{alias}'); a.save()",
    )


@pytest.mark.slow
def test_prune_with_a_ttl_lets_the_store_delete_later(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    history(server, tmp_path, "ttl", range(10, 50, 10))

    done = tool.json("prune", "ttl", "--keep-last", "1", "--ttl", "2s", "--yes")

    assert [row["step"] for row in done["versions"] if row["expires_at"]] == [20, 10]
    assert not [row for row in done["versions"] if row["deleted"]]
    time.sleep(3)
    # It looks for what has expired when it starts.
    server.stop()
    server.start()
    wait_for(lambda: steps(tool, "ttl") == [40, 30], what="the deletion by the store")


@pytest.mark.slow
def test_a_version_that_went_meanwhile_counts_as_gone_and_one_that_is_wanted_stays(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    history(server, tmp_path, "went", range(10, 50, 10))
    server.faults([{"match": {"operation": "DeleteArtifact"}, "count": 1, "action": {"drop": "after"}}])

    done = tool("prune", "went", "--keep-last", "1", "--yes")

    assert done.returncode == 0, done.stderr
    assert "2 versions deleted" in done.stdout
    assert steps(tool, "went") == [40, 30]


@pytest.mark.slow
def test_a_version_whose_file_went_does_not_verify_and_is_not_pulled(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    history(server, tmp_path, "holes", range(10, 30, 10))
    gone = {"match": {"method": "GET", "path": address(tmp_path / "holes/checkpoint-20/optimizer.pt")}, "action": {"status": 404}}
    server.faults([gone])

    verified = tool("verify", "holes:step-20", "--remote")
    other = tool("verify", "holes:step-10", "--remote")
    machine = tool("verify", "holes", "--remote", "--json")
    named = tool("pull", "holes:step-20", tmp_path / "named")
    newest = tool("pull", "holes", tmp_path / "newest")

    assert verified.returncode == 5
    assert "optimizer.pt" in refusal(verified)
    assert other.returncode == 0, other.stderr
    assert machine.returncode == 5
    assert [each["file"] for each in json.loads(machine.stdout)["problems"]] == ["optimizer.pt"]
    assert named.returncode == 4
    assert not (tmp_path / "named").exists()
    assert newest.returncode == 0, newest.stderr
    assert "skipping checkpoint-holes:v1" in newest.stderr
    assert (tmp_path / "newest/trainer_state.json").read_bytes() == (
        tmp_path / "holes/checkpoint-10/trainer_state.json"
    ).read_bytes()


@pytest.mark.slow
def test_verify_remote_reads_every_byte_and_finds_one_that_changed(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    history(server, tmp_path, "rot", range(10, 20, 10))
    corrupt = {"match": {"method": "GET", "path": address(tmp_path / "rot/checkpoint-10/model.safetensors")}}
    server.faults([{**corrupt, "action": {"corrupt": True}}])

    done = tool("verify", "rot", "--remote")

    assert done.returncode == 5
    assert "model.safetensors: does not have the digest" in refusal(done)


def test_pull_refuses_a_folder_that_is_in_use(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    history(server, tmp_path, "used", range(10, 20, 10))
    (tmp_path / "used-folder").mkdir()
    (tmp_path / "used-folder/mine").write_text("mine")

    done = tool("pull", "used", tmp_path / "used-folder")

    assert done.returncode == 2
    assert "not an empty folder" in refusal(done)
    assert (tmp_path / "used-folder/mine").read_text() == "mine"


def test_push_uploads_one_checkpoint_once_and_refuses_a_torn_one(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "out", 4, content="pushed")
    torn = make_checkpoint(tmp_path / "torn", 4, without=["trainer_state.json"])

    first = tool("push", made, "--run-id", "pushed", "--json")
    again = tool("push", made, "--json")
    refused = tool("push", torn, "--run-id", "pushed")
    other = tool("push", made, "--run-id", "another")

    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)[0]["version"] == "v0"
    assert [row["version"] for row in json.loads(again.stdout)] == ["v0"]
    assert refused.returncode == 5
    assert "trainer_state.json" in refusal(refused)
    assert other.returncode == 2
    assert "belongs to run pushed" in refusal(other)


@pytest.mark.slow
def test_an_older_checkpoint_that_is_pushed_from_elsewhere_leaves_latest_where_it_is(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    for step in (10, 20, 30):
        make_checkpoint(tmp_path / "out", step, content="old-push")
    assert tool.watch_once(tmp_path / "out", "old-push", "--backlog", "all").returncode == 0

    done = tool("push", make_checkpoint(tmp_path / "backup", 20, content="backup"), "--run-id", "old-push")

    assert done.returncode == 0, done.stderr
    assert "latest stays with checkpoint-old-push:v2, step 30, which was saved later than checkpoint-20" in done.stderr
    assert [aliases for _, aliases in kept(server, "old-push")][2:] == [["latest", "step-30"], ["step-20"]]
    resumed = tool("resume", "old-push", "--output-dir", tmp_path / "new", "--download-only")
    assert resumed.stdout.strip() == str(tmp_path / "new" / "checkpoint-30")


def test_an_older_checkpoint_of_the_same_folder_that_is_pushed_leaves_latest_where_it_is(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    older, newer = [make_checkpoint(tmp_path / "out", step, content="own-folder") for step in (10, 20)]
    assert tool("push", newer, "--run-id", "own-folder").returncode == 0

    done = tool("push", older, "--run-id", "own-folder")

    assert done.returncode == 0, done.stderr
    assert kept(server, "own-folder") == [(20, ["latest", "step-20"]), (10, ["step-10"])]
    assert tool.json("status", tmp_path / "out")["last_durable_step"] == 20


def test_a_checkpoint_whose_version_was_deleted_is_pushed_again(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    made = [make_checkpoint(tmp_path / "out", step, content="deleted") for step in (4, 8, 12)]
    assert tool.watch_once(tmp_path / "out", "deleted", "--backlog", "all").returncode == 0
    assert tool("prune", "deleted", "--keep-last", "1", "--yes").returncode == 0
    left = [step for step, _ in kept(server, "deleted")]
    assert 4 not in left

    assert tool("push", made[0], "--run-id", "deleted").returncode == 0

    assert sorted(step for step, _ in kept(server, "deleted")) == [4, *left]


def test_what_is_durable_in_one_store_is_not_in_another(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "out", 4, content="two-stores")
    assert tool.watch_once(tmp_path / "out", "two-stores").returncode == 0
    with ServerProcess(tmp_path / "other") as other:
        there = Tool(tmp_path / "home-there", other)

        done = there.watch_once(tmp_path / "out", "two-stores")

        assert done.returncode == 0, done.stderr
        assert [step for step, _ in kept(other, "two-stores")] == [4]
    assert tool.watch_once(tmp_path / "out", "two-stores").returncode == 0
    assert [step for step, _ in kept(server, "two-stores")] == [4]


def test_what_is_durable_in_another_project_is_told(tool: Tool, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "out", 4, content="two-projects")
    assert "what is durable" not in tool.watch_once(tmp_path / "out", "two-projects").stderr

    done = tool.watch_once(tmp_path / "out", "two-projects", "--project", "other")

    assert "what is durable so far is in project tests, and is not uploaded to other again" in done.stderr


def test_push_parked_tries_again_what_a_permanent_error_had_stopped(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_checkpoint(out, 4, content="parked")
    quota = {
        "match": {"operation": "CreateArtifact"},
        "count": 1,
        "action": {"graphql_errors": "injected: quota exceeded"},
    }
    server.faults([quota])
    stopped = tool.watch_once(out, "parked-one")

    done = tool("push", "--parked", out)
    nothing = tool("push", "--parked", out)

    assert stopped.returncode == 1
    assert done.returncode == 0, done.stderr
    assert "uploaded checkpoint-4 as" in done.stdout
    assert nothing.returncode == 0
    assert "no parked uploads" in nothing.stderr


@pytest.mark.slow
def test_push_parked_that_leaves_one_behind_says_which_and_fails(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for step in (4, 8):
        make_checkpoint(out, step, content="behind", saved_at=time.time() - 100 + step)
    quota = {"match": {"operation": "CreateArtifact"}, "action": {"graphql_errors": "injected: quota exceeded"}}
    server.faults([quota | {"count": 2}])
    assert tool.watch_once(out, "behind").returncode == 1
    server.faults([quota | {"count": 1}])

    done = tool("push", "--parked", out)

    assert done.returncode == 1
    assert "checkpoint-4 was not uploaded: parked" in refusal(done)
    assert steps(tool, "behind") == [8]


def test_push_parked_beside_a_watcher_has_the_watcher_retry(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_checkpoint(out, 4, content="beside")
    quota = {"match": {"operation": "CreateArtifact"}, "action": {"graphql_errors": "injected: quota exceeded"}, "count": 1}
    server.faults([quota])
    watcher = tool.start("watch", out, "--run-id", "beside", "--quiet-period", "0.2", log=tmp_path / "log")
    try:
        wait_for(lambda: Spool(out).parked(), what="a parked upload")

        done = tool.json("push", "--parked", out)
    finally:
        watcher.terminate()

    assert [row["step"] for row in done] == [4]
    assert steps(tool, "beside") == [4]
    assert watcher.wait(60) == 0


@pytest.mark.slow
def test_a_policy_of_watch_lets_go_after_each_receipt_and_says_so(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_run(server, "policy")
    for step in (4, 8, 12, 16):
        make_checkpoint(out, step, content="policy", saved_at=time.time() - 100 + step)

    done = tool.watch_once(out, "policy", "--keep-last", "1", "--keep-every", "8")
    status = tool.json("status", out)

    assert done.returncode == 0, done.stderr
    assert steps(tool, "policy") == [16, 12, 8]
    assert "pruned checkpoint-policy:v0, step 4" in done.stderr
    assert status["keep"] == "the last 1, every 8 steps"
    assert status["growth_bytes_per_day"] is None
    assert status["stored_bytes"] == sum(row["bytes"] for row in tool.json("list", "policy"))


def test_a_second_uploader_in_the_training_is_told_once(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    make_run(server, "doubled")
    out = tmp_path / "out"
    for step in (4, 8):
        made = make_checkpoint(out, step, content="doubled", saved_at=time.time() - 100 + step)
        publish(server, made, "doubled", as_hf_does=True)

    done = tool.watch_once(out, "doubled")

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("HF's WandbCallback uploads these checkpoints too, as model-doubled:v1") == 1
    assert "WANDB_LOG_MODEL=false" in done.stderr


def test_status_tells_the_growth_where_nothing_bounds_it(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for step in (4, 8):
        make_checkpoint(out, step, content="growth", saved_at=time.time() - 7200 + 900 * step)
    assert tool.watch_once(out, "growth").returncode == 0

    status, words = tool.json("status", out), tool("status", out)

    assert status["growth_bytes_per_day"] == round(status["stored_bytes"] / 3600 * 86400)
    assert "per day of training" in words.stdout
    assert "--keep-last" in words.stdout


@pytest.mark.parametrize("variables", [{"WANDB_MODE": "disabled"}, {"WANDB_DISABLED": "true"}], ids=["mode", "disabled"])
def test_where_wandb_is_disabled_nothing_is_uploaded_and_that_is_said_once(
    tool: Tool, server: ServerProcess, tmp_path: Path, variables: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    make_checkpoint(out, 4, content="disabled")
    before = len(queries(server))

    watched = tool("watch", out, "--run-id", "disabled", "--once", **variables)
    ran = tool("run", "--run-id", "disabled", "--output-dir", out, "--", "true", **variables)

    pushed = tool("push", out / "checkpoint-4", "--run-id", "disabled", **variables)

    assert (watched.returncode, ran.returncode) == (0, 0), watched.stderr + ran.stderr
    assert pushed.returncode == 2
    assert "W&B is disabled (WANDB_MODE or WANDB_DISABLED): nothing was uploaded" in pushed.stderr
    assert watched.stderr.count("nothing is uploaded") == ran.stderr.count("nothing is uploaded") == 1
    assert len(queries(server)) == before
    assert not list((out / ".ckptsync/spool").glob("*"))


def queries(server: ServerProcess) -> list[dict[str, Any]]:
    """What a client has asked of the server so far."""
    return [each for each in server.requests() if each["path"] == "/graphql"]


@pytest.mark.slow
def test_offline_checkpoints_wait_and_go_out_when_a_start_is_online(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for step in (4, 8):
        make_checkpoint(out, step, content="offline", saved_at=time.time() - 100 + step)
    nobody = Tool(tmp_path / "nobody")

    offline = nobody("watch", out, "--run-id", "offline", "--once", "--backlog", "newest", WANDB_MODE="offline")
    waiting = nobody.json("status", out)["pending_names"]
    online = tool.watch_once(out, "offline")

    assert offline.returncode == 0, offline.stderr
    assert offline.stderr.count("queued in .ckptsync/spool") == 1
    assert [name.partition(".")[0] for name in waiting] == ["checkpoint-8"]
    assert online.returncode == 0, online.stderr
    make_run(server, "offline")
    assert [(row["step"], sorted(row["aliases"])) for row in tool.json("list", "offline")] == [(8, ["latest", "step-8"])]


@pytest.mark.slow
def test_wandb_silent_and_quiet_quieten_ckptsync_too(tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_checkpoint(out, 4, content="silent")

    silent = tool("watch", out, "--run-id", "quiet", "--once", "--quiet-period", "0.1", WANDB_SILENT="true")
    quiet = tool("watch", out, "--run-id", "quiet", "--once", "--quiet-period", "0.1", WANDB_QUIET="true")

    assert (silent.returncode, quiet.returncode) == (0, 0)
    assert "INFO" not in silent.stderr + quiet.stderr


def test_a_training_that_asks_for_no_upload_is_uploaded_as_told_with_a_warning(tool: Tool, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "out", 4, content="false")

    done = tool("watch", tmp_path / "out", "--run-id", "false", "--once", "--quiet-period", "0.1", WANDB_LOG_MODEL="false")

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ignoring WANDB_LOG_MODEL=false") == 1
    assert "uploaded checkpoint-4" in done.stderr


@pytest.mark.slow
def test_artifacts_can_go_by_the_runs_name_and_are_found_by_its_id(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    make_run(server, "by-name-id")
    make_checkpoint(tmp_path / "out", 4, content="by-name")
    command = ["--once", "--quiet-period", "0.1", "--name-by", "run-name"]

    done = tool("watch", tmp_path / "out", "--run-id", "by-name-id", *command, WANDB_NAME="bert high lr")
    nameless = tool("watch", tmp_path / "out", "--run-id", "by-name-id", *command)

    assert done.returncode == 0, done.stderr
    assert [row["name"] for row in tool.json("list", "by-name-id")] == ["checkpoint-bert-high-lr"]
    assert nameless.returncode == 2
    assert "WANDB_NAME" in refusal(nameless)


@pytest.mark.slow
def test_a_command_is_left_out_of_the_metadata_where_that_is_wanted(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    for flag, recorded in (("--record-command", True), ("--no-record-command", False)):
        out = tmp_path / flag
        make_checkpoint(out, 4, content=flag)

        done = tool("run", "--run-id", flag[2:], "--output-dir", out, "--quiet-period", "0.1", flag, "--", "true")

        assert done.returncode == 0, done.stderr
        assert ("command" in metadata(server, f"checkpoint-{flag[2:]}")["ckptsync"]) == recorded


def metadata(server: ServerProcess, name: str) -> dict[str, Any]:
    query = """query Metadata($name: String!) { project(name: "tests", entityName: "local") { artifactCollection(name: $name) {
        artifacts { edges { node { metadata } } } } } }"""
    edges = data(server.graphql(query, name=name))["artifactCollection"]["artifacts"]["edges"]
    found: dict[str, Any] = json.loads(edges[0]["node"]["metadata"])
    return found


def test_doctor_finds_nothing_wrong_where_nothing_is(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    make_run(server, "healthy")
    make_checkpoint(tmp_path / "out", 4)

    findings = tool.json("doctor", tmp_path / "out")
    words = tool("doctor", tmp_path / "out", "--dry-run")

    states = {each["check"]: each["state"] for each in findings}
    assert "error" not in states.values()
    assert {"credentials", "server", "entity", "project", "permissions", "clock", "links", "file events", "disk"} <= states.keys()
    assert "uploaded and deleted" in next(each["message"] for each in findings if each["check"] == "permissions")
    assert words.returncode == 0
    assert "permissions" not in words.stdout
    left = """query Left { project(name: "tests", entityName: "local") { runs { edges { node { name } } }
        artifactCollections { edges { node { name } } } } }"""
    assert "ckptsync-doctor" not in json.dumps(server.graphql(left))


@pytest.mark.slow
def test_doctor_says_what_is_wrong_and_what_to_do(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    refused = {"match": {"operation": "CreateArtifact"}, "action": {"graphql_errors": "injected: permission denied"}}
    make_run(server, "healthy")

    nobody = Tool(tmp_path / "nobody")("doctor", tmp_path / "out")
    wrong_key = tool("doctor", tmp_path / "out", WANDB_API_KEY="0" * 40)
    away = tool("doctor", tmp_path / "out", WANDB_BASE_URL="http://127.0.0.1:9")
    empty = tool("doctor", tmp_path / "out", "--project", "new-one")
    server.faults([refused])
    forbidden = tool("doctor", tmp_path / "out")

    assert (nobody.returncode, wrong_key.returncode, away.returncode, empty.returncode) == (3, 3, 6, 0)
    assert "wandb login" in nobody.stdout
    assert "links" in nobody.stdout
    assert "refuses the key" in wrong_key.stdout
    assert "Check the network" in away.stdout
    assert "the first run creates it" in empty.stdout
    assert forbidden.returncode == 1
    assert "permission denied" in forbidden.stdout


def test_a_shell_completes_every_command(tool: Tool) -> None:
    done = tool(COMP_WORDS="ckptsync ", COMP_CWORD="1", _CKPTSYNC_COMPLETE="bash_complete")

    assert done.returncode == 0, done.stderr
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} >= set(COMMANDS)
