"""What a user gets wrong, and what the network breaks: one line with a hint, the right exit code, never a traceback."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ckptsync import record
from ckptsync.upload.spool import Spool
from tests.checkpoints import make_checkpoint
from tests.integration.conftest import Ended, Tool, address, make_run, publish, refusal, wait_for
from tests.server_process import ServerProcess

WRONG_KEY = "0" * 40


def test_an_unknown_run_is_refused_with_the_ids_that_look_like_it(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    make_run(server, "llama-7b-v3")

    done = tool("resume", "llama-7b-v2", "--output-dir", tmp_path / "new")

    assert done.returncode == 4
    assert "there is no run local/tests/llama-7b-v2" in refusal(done)
    assert "Did you mean llama-7b-v3?" in refusal(done)


def test_a_run_in_an_unknown_project_is_refused(tool: Tool) -> None:
    done = tool("list", "anything", "--project", "no-such-project")

    assert done.returncode == 4
    assert "local/no-such-project/anything" in refusal(done)


@pytest.mark.parametrize(
    "entity",
    [pytest.param([], id="default-entity"), pytest.param(["--entity", "local"], id="given-entity", marks=pytest.mark.slow)],
)
def test_a_wrong_key_is_refused_at_once(tool: Tool, tmp_path: Path, entity: list[str]) -> None:
    output_dir = tmp_path / "out"
    make_checkpoint(output_dir, 4)

    listed = tool("list", "anything", *entity, WANDB_API_KEY=WRONG_KEY)
    watched = tool("watch", output_dir, "--run-id", "anything", *entity, WANDB_API_KEY=WRONG_KEY)

    assert (listed.returncode, watched.returncode) == (3, 3)
    assert "refuses the key" in refusal(listed)
    assert "WANDB_API_KEY" in refusal(watched)
    assert WRONG_KEY not in listed.stderr + watched.stderr
    assert not Spool(output_dir).parked()


def test_without_credentials_both_ways_out_are_named(tmp_path: Path) -> None:
    nobody = Tool(tmp_path / "nobody")
    (tmp_path / "out").mkdir()

    commands: list[list[str | Path]] = [
        ["list", "anything"],
        ["watch", tmp_path / "out", "--run-id", "anything"],
        ["resume", "anything", "--output-dir", tmp_path / "new"],
    ]
    for words in commands:
        done = nobody(*words)

        assert done.returncode == 3
        assert "wandb login" in refusal(done)
        assert "--local" in refusal(done)


@pytest.mark.slow
def test_a_server_that_is_down_is_given_up_in_bounded_time(tool: Tool) -> None:
    started = time.monotonic()

    done = tool("list", "anything", WANDB_BASE_URL="http://127.0.0.1:9")

    assert done.returncode == 6
    assert "Check the network and WANDB_BASE_URL" in refusal(done)
    assert "connection refused" in refusal(done)
    assert time.monotonic() - started < 45


def test_an_output_dir_that_is_missing_is_refused_with_how_to_make_it(tool: Tool, tmp_path: Path) -> None:
    commands: list[list[str | Path]] = [["watch", tmp_path / "none", "--run-id", "r"], ["status", tmp_path / "none"]]
    for words in commands:
        done = tool(*words)

        assert done.returncode == 2
        assert "does not exist" in refusal(done)
        assert "mkdir" in refusal(done)
    assert not (tmp_path / "none").exists()


def test_an_output_dir_that_is_a_file_or_below_one_is_refused(tool: Tool, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")

    for path in (file, file / "out"):
        commands: list[list[str | Path]] = [
            ["watch", path, "--run-id", "r"],
            ["status", path],
            ["resume", "r", "--output-dir", path],
            ["run", "--run-id", "r", "--output-dir", path, "--", "true"],
        ]
        for words in commands:
            done = tool(*words)

            assert done.returncode == 2, (words, done.stderr)
            refusal(done)


@pytest.mark.parametrize("run_id", ["a/b", " leading", "trailing ", "with:colon:twice", "", "a#b"])
def test_an_impossible_run_id_is_refused(tool: Tool, tmp_path: Path, run_id: str) -> None:
    (tmp_path / "out").mkdir()

    resumed = tool("resume", run_id, "--output-dir", tmp_path / "new")
    listed = tool("list", run_id)

    assert resumed.returncode == 2
    assert listed.returncode == 2
    refusal(resumed)
    refusal(listed)


def test_a_watch_without_any_run_id_says_how_to_give_one(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    done = tool("watch", tmp_path / "out")

    assert done.returncode == 2
    assert "--run-id" in refusal(done)
    assert "WANDB_RUN_ID" in refusal(done)


@pytest.mark.slow
def test_a_run_id_with_spaces_inside_works_all_the_way(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    make_run(server, "my run 1")
    output_dir, new = tmp_path / "out", tmp_path / "new"
    make_checkpoint(output_dir, 4)

    watched = tool.watch_once(output_dir, "my run 1")
    resumed = tool("resume", "my run 1", "--output-dir", new, "--download-only")

    assert watched.returncode == 0, watched.stderr
    assert [row["name"] for row in tool.json("list", "my run 1")] == ["checkpoint-my-run-1"]
    assert resumed.stdout.strip() == str(new / "checkpoint-4")


@pytest.mark.slow
def test_an_unknown_alias_is_refused_naming_those_there_are(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    make_run(server, "aliases")
    publish(server, make_checkpoint(tmp_path / "out", 4), "aliases")

    for done in (tool("list", "aliases:best"), tool("resume", "aliases:best", "--output-dir", tmp_path / "new")):
        assert done.returncode == 4
        assert "no version 'best'" in refusal(done)
        assert "latest, step-4, v0" in refusal(done)


@pytest.mark.slow
def test_a_download_that_is_corrupt_each_time_is_refused_when_there_is_no_other(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    make_run(server, "corrupt-only")
    made = make_checkpoint(tmp_path / "out", 4, content="corrupt-only")
    publish(server, made, "corrupt-only")
    server.faults([{"match": {"method": "GET", "path": address(made / "model.safetensors")}, "action": {"corrupt": True}}])

    done = tool("resume", "corrupt-only", "--output-dir", tmp_path / "new", "--download-only")

    assert done.returncode == 5
    assert "no valid checkpoint" in refusal(done)
    assert "model.safetensors does not have the digest" in done.stderr
    assert not list((tmp_path / "new").glob("checkpoint-*"))


def test_a_corrupt_version_gives_way_to_the_one_before_and_says_which_and_why(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    make_run(server, "corrupt-newest")
    for step in (4, 8):
        publish(server, make_checkpoint(tmp_path / "out", step, content="corrupt-newest"), "corrupt-newest")
    server.faults(
        [
            {
                "match": {"method": "GET", "path": address(tmp_path / "out/checkpoint-8/optimizer.pt")},
                "action": {"corrupt": True},
            }
        ]
    )

    done = tool("resume", "corrupt-newest", "--output-dir", tmp_path / "new", "--download-only")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "new" / "checkpoint-4")
    assert "skipping checkpoint-corrupt-newest:v1" in done.stderr
    assert "optimizer.pt does not have the digest" in done.stderr


@pytest.mark.slow
def test_a_download_that_is_cut_off_is_tried_again(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    make_run(server, "cut-off")
    made = make_checkpoint(tmp_path / "out", 4, content="cut-off", size=100_000)
    publish(server, made, "cut-off")
    weights, optimizer = address(made / "model.safetensors"), address(made / "optimizer.pt")
    server.faults(
        [
            {"match": {"method": "GET", "path": weights}, "count": 2, "action": {"drop": "during"}},
            {"match": {"method": "GET", "path": optimizer}, "count": 1, "action": {"status": 503}},
        ]
    )

    done = tool("resume", "cut-off", "--output-dir", tmp_path / "new", "--download-only")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "new" / "checkpoint-4")
    assert "succeeded after" in done.stderr
    assert server.fault_hits() == [2, 1]


def test_a_second_watcher_on_a_folder_is_refused_naming_the_first(tool: Tool, tmp_path: Path, ended: Ended) -> None:
    output_dir = tmp_path / "out"
    output_dir.mkdir()
    first = ended(tool.start("watch", output_dir, "--run-id", "first", log=tmp_path / "log"))
    wait_for(lambda: (output_dir / ".ckptsync/lock").exists() and (output_dir / ".ckptsync/lock").read_text(), what="the lock")

    done = tool("watch", output_dir, "--run-id", "second")

    assert done.returncode == 7
    assert f"pid {first.pid}" in refusal(done)
    assert "first" in refusal(done)
    assert record.read(output_dir).text("run_id") == "first"


def test_an_unknown_option_or_command_is_refused_with_where_to_look(tool: Tool, tmp_path: Path) -> None:
    option = tool("watch", tmp_path, "--run-idd", "x")
    command = tool("wacth", tmp_path)

    assert (option.returncode, command.returncode) == (2, 2)
    assert "--run-id" in refusal(option)
    assert "watch --help" in refusal(option)
    assert "ckptsync --help" in refusal(command)


@pytest.mark.parametrize("pid", ["0", "-1"])
def test_a_pid_that_no_process_has_is_refused(tool: Tool, tmp_path: Path, pid: str) -> None:
    done = tool("watch", tmp_path, "--run-id", "x", "--pid", pid)

    assert done.returncode == 2, done.stderr
    assert "--pid" in refusal(done)


@pytest.mark.parametrize("text", ["project = ", "\xff", "local = [1"], ids=["no-value", "not-utf-8", "not-closed"])
def test_a_settings_file_that_cannot_be_read_is_refused_by_name(tool: Tool, tmp_path: Path, text: str) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_bytes(text.encode("latin-1"))

    done = tool("status", tmp_path, "--config", settings)

    assert done.returncode == 3
    assert str(settings) in refusal(done)


def test_a_settings_file_that_is_named_but_missing_is_refused(tool: Tool, tmp_path: Path) -> None:
    done = tool("status", tmp_path, "--config", tmp_path / "none.toml")

    assert done.returncode == 3
    assert "no such settings file" in refusal(done)


def test_a_setting_with_an_impossible_value_is_refused_by_name(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('quiet-period = "long"\n')

    done = tool("watch", tmp_path, "--run-id", "x", "--config", tmp_path / "settings.toml")

    assert done.returncode == 2
    assert "quiet-period" in refusal(done)


@pytest.mark.slow
def test_settings_come_from_flag_then_variable_then_file_then_wandb_then_run_json(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    output_dir = tmp_path / "out"
    make_checkpoint(output_dir, 4)
    record.update(output_dir, project="of-run-json", run_id="settings")
    settings = tool.home / ".config" / "ckptsync" / "config.toml"
    settings.parent.mkdir(parents=True)
    given: dict[str, str] = {"WANDB_PROJECT": ""}

    def project(*flags: str) -> str:
        # A key that is refused ends the watch at once, and run.json says by then for which project it was.
        done = tool("watch", output_dir, "--once", *flags, timeout=60, WANDB_API_KEY=WRONG_KEY, **given)
        assert done.returncode == 3, done.stderr
        found = record.read(output_dir).text("project")
        record.update(output_dir, project="of-run-json")
        return str(found)

    assert project() == "of-run-json"
    given["WANDB_PROJECT"] = "of-wandb"
    assert project() == "of-wandb"
    settings.write_text('project = "of-the-file"\n')
    assert project() == "of-the-file"
    given["CKPTSYNC_PROJECT"] = "of-ckptsync"
    assert project() == "of-ckptsync"
    assert project("--project", "of-the-flag") == "of-the-flag"


def test_a_version_whose_manifest_makes_no_sense_gives_way_to_the_one_before(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    make_run(server, "odd-manifest")
    publish(server, make_checkpoint(tmp_path / "out", 4, content="odd-manifest"), "odd-manifest")
    publish(server, make_checkpoint(tmp_path / "out", 8, content="odd-manifest"), "odd-manifest", policy={})

    done = tool("resume", "odd-manifest", "--output-dir", tmp_path / "new", "--download-only")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "new" / "checkpoint-4")
    assert "skipping checkpoint-odd-manifest:v1" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("action", [{"delay": 3600}, {"status": 503}], ids=["no answer", "error"])
def test_a_manifest_that_nobody_gives_costs_the_patience_of_a_person_and_the_version_before_is_taken(
    tool: Tool, server: ServerProcess, tmp_path: Path, action: dict[str, object]
) -> None:
    run_id = f"no-manifest-{'-'.join(action)}"
    make_run(server, run_id)
    for step in (4, 8):
        manifest = publish(server, make_checkpoint(tmp_path / "out", step, content=run_id), run_id)
    server.faults([{"match": {"method": "GET", "path": address(manifest)}, "action": action}])

    done = tool("resume", run_id, "--output-dir", tmp_path / "new", "--download-only", timeout=240)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "new" / "checkpoint-4")
    assert "cannot be read, although the store answers" in done.stderr


@pytest.mark.parametrize("action", [{"corrupt": True}, {"status": 503}], ids=["corrupt", "error-page"])
def test_a_manifest_that_came_over_a_bad_line_is_asked_for_again(
    tool: Tool, server: ServerProcess, tmp_path: Path, action: dict[str, object]
) -> None:
    run_id = f"manifest-{'-'.join(action)}"
    make_run(server, run_id)
    for step in (4, 8):
        manifest = publish(server, make_checkpoint(tmp_path / "out", step, content=run_id), run_id)
    server.faults([{"match": {"method": "GET", "path": address(manifest)}, "count": 1, "action": action}])

    done = tool("resume", run_id, "--output-dir", tmp_path / "new", "--download-only")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "new" / "checkpoint-8")
    assert server.fault_hits() == [1]
