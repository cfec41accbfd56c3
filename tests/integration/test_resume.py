"""`resume` as a user runs it: what it brings, from where, what it starts, and what it refuses to."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from ckptsync import record
from ckptsync.rehearsal import comparison
from tests.checkpoints import make_checkpoint
from tests.integration.conftest import (
    Ended,
    Tool,
    address,
    contents,
    events,
    kept,
    make_run,
    program,
    publish,
    refusal,
    training,
    wait_for,
)
from tests.server_process import ServerProcess

TELL = "print('started with', sys.argv[1:], os.environ['WANDB_RUN_ID'], os.environ['WANDB_RESUME'])"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """The output folder on the new machine, which has nothing yet."""
    return tmp_path / "new"


def publish_steps(server: ServerProcess, folder: Path, run_id: str, *steps: int, max_steps: int = 1000) -> list[Path]:
    """Versions of a run that is on the server, a second apart."""
    make_run(server, run_id)
    made = []
    for step in steps:
        saved_at = time.time() - 1000 + step
        made.append(make_checkpoint(folder, step, content=run_id, max_steps=max_steps, saved_at=saved_at))
        publish(server, made[-1], run_id)
    return made


def gets(server: ServerProcess, *paths: Path) -> list[int]:
    """How often each content was asked for."""
    asked = [each["path"] for each in server.requests() if each["method"] == "GET"]
    return [asked.count(address(path)) for path in paths]


def test_the_placeholder_becomes_the_path_and_the_run_must_exist(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    publish_steps(server, tmp_path / "old", "placeholder", 4)

    done = tool(
        "resume", "placeholder", "--output-dir", new, "--", *program(TELL), "--from", "{checkpoint}", "--x={checkpoint}/y"
    )

    assert done.returncode == 0, done.stderr
    path = str(new / "checkpoint-4")
    assert f"started with {['--from', path, f'--x={path}/y']} placeholder must" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_hook_hands_the_checkpoint_to_a_trainer_that_knows_nothing_of_it(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    make_run(server, "hooked")
    old = tmp_path / "old"
    first = tool.run_program(training(old, steps=4, save=2, report_to="none"))
    publish(server, old / "checkpoint-2", "hooked")

    done = tool("resume", "hooked", "--output-dir", new, "--", *training(new, steps=4, save=2, report_to="none"))

    assert first == 0
    assert done.returncode == 0, done.stderr
    assert "resuming from checkpoint-hooked:v0, step 2" in done.stderr
    assert not [each for each in comparison.compare(new / "checkpoint-4", old / "checkpoint-4") if not each.equal]
    assert kept(server, "hooked")[-1] == (4, ["final", "latest", "step-4"])


@pytest.mark.slow
def test_a_training_that_ignores_the_checkpoint_is_told_and_nothing_of_it_is_uploaded(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    publish_steps(server, tmp_path / "old", "ignores", 4)
    ignores = program("make_checkpoint(pathlib.Path(sys.argv[1]), 2, content='from the beginning')")

    done = tool("resume", "ignores", "--output-dir", new, "--", *ignores, str(new))

    assert done.returncode == 5
    assert "checkpoint-2 is not above step 4" in done.stderr
    assert [step for step, _ in kept(server, "ignores")] == [4]


@pytest.mark.slow
def test_the_command_that_was_recorded_here_starts_again_without_a_question(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    publish_steps(server, tmp_path / "old", "recorded", 4)
    first = tool("resume", "recorded", "--output-dir", new, "--", *program(TELL), "{checkpoint}")

    second = tool("resume", "recorded", "--output-dir", new)

    assert first.returncode == second.returncode == 0, second.stderr
    assert first.stdout == second.stdout
    assert "resuming from local checkpoint-4" in second.stderr


def test_a_command_that_only_a_version_names_is_shown_and_runs_only_after_a_yes(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    make_run(server, "consent")
    marker = tmp_path / "ran"
    command = program(f"pathlib.Path({str(marker)!r}).touch()")
    publish(server, make_checkpoint(tmp_path / "old", 4, content="consent"), "consent", ours={"command": command})

    refused = tool("resume", "consent", "--output-dir", new)
    ran_unasked = marker.exists()
    accepted = tool("resume", "consent", "--output-dir", new, "--yes")

    assert refused.returncode == 2
    assert str(marker) in refused.stderr
    assert "runs only after confirmation. Add --yes" in refused.stderr
    assert not ran_unasked
    assert "resuming from local checkpoint-4" in accepted.stderr
    assert accepted.returncode == 0, accepted.stderr
    assert marker.exists()


def test_without_any_command_it_says_how_to_give_one(tool: Tool, server: ServerProcess, tmp_path: Path, new: Path) -> None:
    publish_steps(server, tmp_path / "old", "no-command", 4)

    done = tool("resume", "no-command", "--output-dir", new)

    assert done.returncode == 2
    assert "no command to start the training with. Add it after --" in done.stderr


@pytest.mark.slow
def test_a_command_that_is_not_there_is_refused(tool: Tool, server: ServerProcess, tmp_path: Path, new: Path) -> None:
    publish_steps(server, tmp_path / "old", "no-program", 4)

    done = tool("resume", "no-program", "--output-dir", new, "--", "no-such-program")

    assert done.returncode == 2
    assert "no-such-program: No such file or directory" in refusal(done)


@pytest.mark.slow
def test_no_secret_reaches_a_file_a_version_or_the_log(tool: Tool, server: ServerProcess, tmp_path: Path, new: Path) -> None:
    publish_steps(server, tmp_path / "old", "secrets", 4)
    secret = "hf_" + "a1B2" * 8
    saves = program("make_checkpoint(pathlib.Path(sys.argv[1]), 8, content='secrets')")

    done = tool("resume", "secrets", "--output-dir", new, "-v", "--", *saves, str(new), "--hub_token", secret, HF_TOKEN=secret)

    assert done.returncode == 0, done.stderr
    assert kept(server, "secrets")[-1][0] == 8
    assert record.read(new).command is None
    assert "looks like a secret" in done.stderr
    for hidden in (secret, server.api_key):
        assert hidden not in done.stderr + done.stdout
        assert not [path for path, content in contents(new / ".ckptsync").items() if hidden.encode() in content]
        assert hidden not in server.request_log.read_text()


def test_a_checkpoint_whose_bytes_changed_on_the_disk_is_brought_from_the_store_again(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    publish_steps(server, tmp_path / "gone", "flipped", 6)
    before = tool.pulled("flipped", new)
    weights = new / "checkpoint-6" / "model.safetensors"
    status, content = weights.stat(), bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))

    done = tool("resume", "flipped", "--output-dir", new, "--download-only")

    assert done.returncode == 0, done.stderr
    assert "skipping local checkpoint-6: model.safetensors changed on the disk since checkpoint-6 became" in done.stderr
    assert contents(new / "checkpoint-6") == before


def test_download_only_prints_the_path_and_starts_nothing(tool: Tool, server: ServerProcess, tmp_path: Path, new: Path) -> None:
    (made,) = publish_steps(server, tmp_path / "old", "download", 4)
    new.mkdir()
    record.update(new, command=program(f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()"))

    done = tool("resume", "download", "--output-dir", new, "--download-only")

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{new / 'checkpoint-4'}\n"
    assert contents(new / "checkpoint-4") == contents(made)
    assert not (tmp_path / "ran").exists()
    assert not list((new / ".ckptsync" / "incoming").iterdir())


def test_torn_and_higher_checkpoints_are_moved_aside_and_not_deleted(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    publish_steps(server, tmp_path / "old", "aside", 4, 8)
    higher = contents(make_checkpoint(new, 16, content="higher"))
    make_checkpoint(new, 12, content="torn", without=["trainer_state.json"])
    make_checkpoint(new, 8, content="torn", without=["optimizer.pt"])

    done = tool("resume", "aside:step-8", "--output-dir", new, "--download-only")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(new / "checkpoint-8")
    assert [path.name for path in new.glob("checkpoint-*")] == ["checkpoint-8"]
    aside = {path.name.rpartition("-")[0]: path for path in (new / ".ckptsync" / "torn").iterdir()}
    assert sorted(aside) == ["checkpoint-12", "checkpoint-16", "checkpoint-8"]
    assert contents(aside["checkpoint-16"]) == higher
    assert done.stderr.count("out of the way, to") == 3


def test_a_newer_valid_checkpoint_that_is_here_is_used_without_a_download(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    (made,) = publish_steps(server, tmp_path / "old", "newer-here", 4)
    make_checkpoint(new, 8, content="newer-here")
    make_checkpoint(new, 12, content="newer-here", without=["rng_state.pth"])

    done = tool("resume", "newer-here", "--output-dir", new, "--download-only")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(new / "checkpoint-8")
    assert "resuming from local checkpoint-8, step 8, saved 0 min" in done.stderr
    assert "skipping checkpoint-12: incomplete: rng_state.pth" in done.stderr
    assert gets(server, made / "model.safetensors") == [0]


def test_a_newer_version_wins_over_an_older_checkpoint_that_is_here(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    publish_steps(server, tmp_path / "old", "newer-there", 8)
    make_checkpoint(new, 4, content="newer-there", saved_at=time.time() - 2000)

    done = tool("resume", "newer-there", "--output-dir", new, "--download-only")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(new / "checkpoint-8")
    assert (new / "checkpoint-4").is_dir()


@pytest.mark.slow
def test_a_download_that_was_killed_goes_on_with_the_files_that_are_missing(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path, ended: Ended
) -> None:
    make_run(server, "goes-on")
    made = make_checkpoint(tmp_path / "old", 4, content="goes-on", size=300_000)
    publish(server, made, "goes-on")
    weights, optimizer = made / "model.safetensors", made / "optimizer.pt"
    server.faults([{"match": {"method": "GET", "path": address(optimizer)}, "action": {"throttle": 20_000}}])
    arrived = new / ".ckptsync" / "incoming" / "checkpoint-goes-on.v0" / weights.name
    first = ended(tool.start("resume", "goes-on", "--output-dir", new, "--download-only", log=tmp_path / "log"))
    wait_for(lambda: any(server.fault_hits()), what="the slow file under way")
    wait_for(lambda: arrived.exists() and arrived.read_bytes() == weights.read_bytes(), what="the weights")
    time.sleep(0.3)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    server.faults([])

    done = tool("resume", "goes-on", "--output-dir", new, "--download-only")

    assert done.returncode == 0, done.stderr
    assert contents(new / "checkpoint-4") == contents(made)
    assert gets(server, weights) == [1]


@pytest.mark.slow
def test_what_was_placed_is_not_uploaded_again(tool: Tool, server: ServerProcess, tmp_path: Path, new: Path) -> None:
    publish_steps(server, tmp_path / "old", "placed", 4)
    resumed = tool("resume", "placed", "--output-dir", new, "--", *program(TELL))

    watched = tool.watch_once(new, "placed")

    assert resumed.returncode == watched.returncode == 0, watched.stderr
    assert kept(server, "placed") == [(4, ["latest", "step-4"])]
    assert events(new, "pinned", "uploaded") == []
    assert tool.json("status", new)["last_durable_step"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("command", ["resume", "pull"])
def test_ctrl_c_in_a_download_ends_it_at_once(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path, ended: Ended, command: str
) -> None:
    made = make_checkpoint(tmp_path / "old", 6, content="interrupted", size=60_000_000)
    assert tool.watch_once(tmp_path / "old", f"interrupted-{command}").returncode == 0
    server.faults([{"match": {"method": "GET", "path": address(made / "model.safetensors")}, "action": {"throttle": 1_000_000}}])
    words = ("--output-dir", new, "--download-only") if command == "resume" else (new,)
    process = ended(tool.start(command, f"interrupted-{command}", *words, log=tmp_path / "log"))
    wait_for(lambda: sum(path.stat().st_blocks for path in tmp_path.rglob("model.safetensors*")) * 512 > 61_000_000, what="bytes")

    process.send_signal(signal.SIGINT)

    assert process.wait(20) == 130


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_machine_that_goes_during_the_download_is_a_preemption(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path, ended: Ended, number: signal.Signals
) -> None:
    made = make_checkpoint(tmp_path / "old", 6, content=f"leaving-{number}", size=20_000_000)
    assert tool.watch_once(tmp_path / "old", f"leaving-{number}").returncode == 0
    server.faults([{"match": {"method": "GET", "path": address(made / "model.safetensors")}, "action": {"throttle": 1_000_000}}])
    words: list[str | Path] = ["--output-dir", new, "--", *program(TELL)]
    process = ended(tool.start("resume", f"leaving-{number}", *words, log=tmp_path / "log"))
    wait_for(lambda: sum(path.stat().st_blocks for path in new.rglob("model.safetensors*")) * 512 > 1_000_000, what="bytes")

    process.send_signal(number)

    assert process.wait(20) == 75
    said = (tmp_path / "log").read_text()
    assert "before the training was started" in said
    assert "started with" not in said


def test_a_time_that_is_none_in_a_versions_metadata_keeps_nobody_from_resuming(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    make_run(server, "odd-time")
    made = make_checkpoint(tmp_path / "old", 6, content="odd-time")
    publish(server, made, "odd-time", ours={"saved_at": 1e30})

    assert tool.pulled("odd-time", new) == contents(made)
    assert tool.json("list", "odd-time")


def test_a_command_from_the_store_cannot_hide_a_part_of_itself(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    make_run(server, "hidden-part")
    made = make_checkpoint(tmp_path / "old", 6, content="hidden-part")
    command = ["sh", "-c", "touch pwned #\r\x1b[2K  python train.py\x1b[8m"]
    publish(server, made, "hidden-part", ours={"command": command})

    done = tool("resume", "hidden-part", "--output-dir", new)

    assert done.returncode == 2
    assert r"sh -c 'touch pwned #\r\x1b[2K  python train.py\x1b[8m'" in done.stderr
    assert not {"\r", "\x1b"} & set(done.stderr)


def test_files_with_odd_names_come_back_as_they_were(tool: Tool, server: ServerProcess, tmp_path: Path, new: Path) -> None:
    made = make_checkpoint(tmp_path / "old", 6, content="odd-names")
    for name in ("eval\\result.txt", "n" * 255, "é" * 120, "new\nline.txt", "..dots", " "):
        (made / name).write_text(name)
    assert tool.watch_once(tmp_path / "old", "odd-names").returncode == 0

    assert tool.pulled("odd-names", new) == contents(made)


@pytest.mark.parametrize("name", ["../escaped", "../../escaped", "deep/../../../escaped", "ABSOLUTE", "a\\..\\escaped"])
def test_a_version_that_names_a_file_outside_is_refused_and_nothing_is_written_there(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path, name: str
) -> None:
    run_id = f"hostile-{len(name)}"
    name = name.replace("ABSOLUTE", str(tmp_path / "escaped"))
    make_run(server, run_id)
    made = make_checkpoint(tmp_path / "old", 4, content=run_id)
    publish(server, made, run_id, extra={name: contents(made)["config.json"]}, unannounced=[name])

    done = tool("resume", run_id, "--output-dir", new, "--download-only")

    assert done.returncode == 5
    assert "would leave the folder" in done.stderr
    assert not list(tmp_path.rglob("*escaped"))
    assert not list(new.glob("checkpoint-*"))


def test_a_version_that_is_not_whole_gives_way_to_the_one_before(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    publish_steps(server, tmp_path / "old", "not-whole", 4)
    publish(server, make_checkpoint(tmp_path / "old", 8, content="not-whole", without=["scheduler.pt"]), "not-whole")

    done = tool("resume", "not-whole", "--output-dir", new, "--download-only")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(new / "checkpoint-4")
    assert "skipping checkpoint-not-whole:v1" in done.stderr
    assert "scheduler.pt: missing" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_the_training_s_own_exit_code_is_passed_on(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path, ending: str, code: int
) -> None:
    publish_steps(server, tmp_path / "old", f"code-{code}", 4)

    done = tool("resume", f"code-{code}", "--output-dir", new, "--", *program(ending))

    assert done.returncode == code


@pytest.mark.slow
def test_a_finished_training_is_not_started_again_unless_it_is_to_be_extended(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    publish_steps(server, tmp_path / "old", "finished", 8, max_steps=8)

    done = tool("resume", "finished", "--output-dir", new, "--", *program(TELL))
    extended = tool("resume", "finished", "--output-dir", new, "--extend", "--", *program(TELL))

    assert done.returncode == 0
    assert "the training is finished" in done.stderr
    assert "step 8 of 8" in done.stderr
    assert "started with" not in done.stdout
    assert "started with" in extended.stdout


@pytest.mark.slow
def test_a_finished_training_goes_on_from_an_older_version_that_was_chosen(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ends = program("for step in (4, 8): make_checkpoint(pathlib.Path(sys.argv[1]), step, content='chosen', max_steps=8)")
    line: list[str | Path] = ["run", "--run-id", "chosen", "--output-dir", out, "--backlog", "all", "--quiet-period", "0.2", "--"]
    assert tool(*line, *ends, out).returncode == 0
    assert "the training is finished" in tool(*line, *ends, out).stderr
    make_run(server, "chosen")

    done = tool("resume", "chosen:step-4", "--output-dir", out, "--", *program(TELL))

    assert "started with" in done.stdout, done.stderr


@pytest.mark.slow
def test_what_hf_s_callback_uploaded_can_be_listed_and_resumed_from(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    make_run(server, "of-hf")
    made = make_checkpoint(tmp_path / "old", 4, content="of-hf")
    publish(server, made, "of-hf", as_hf_does=True)
    final = make_checkpoint(tmp_path / "final", 8, content="of-hf", without=["optimizer.pt", "scheduler.pt", "rng_state.pth"])
    publish(server, final, "of-hf", as_hf_does=True, aliases=["final_model"])

    listed = tool.json("list", "of-hf")
    done = tool("resume", "of-hf", "--output-dir", new, "--", *program(TELL), "{checkpoint}")

    assert [(row["name"], row["step"], row["resumable"]) for row in listed] == [
        ("model-of-hf", 8, None),
        ("model-of-hf", 4, None),
    ]
    assert done.returncode == 0, done.stderr
    assert f"started with ['{new / 'checkpoint-4'}']" in done.stdout
    assert contents(new / "checkpoint-4") == contents(made)


def test_an_alias_picks_that_version(tool: Tool, server: ServerProcess, tmp_path: Path, new: Path) -> None:
    publish_steps(server, tmp_path / "old", "alias", 4, 8, 12)

    done = tool("resume", "alias:v1", "--output-dir", new, "--download-only")

    assert done.stdout.strip() == str(new / "checkpoint-8")


def test_libraries_that_differ_from_the_recorded_ones_are_told(
    tool: Tool, server: ServerProcess, tmp_path: Path, new: Path
) -> None:
    make_run(server, "libraries")
    made = make_checkpoint(tmp_path / "old", 4, content="libraries")
    publish(server, made, "libraries", ours={"libraries": {"torch": "1.0", "wandb": "0.1"}})

    done = tool("resume", "libraries", "--output-dir", new, "--download-only")

    assert done.returncode == 0
    assert "torch was 1.0 and is" in done.stderr


def test_a_link_in_the_place_of_a_download_is_not_followed(tool: Tool, server: ServerProcess, tmp_path: Path, new: Path) -> None:
    publish_steps(server, tmp_path / "old", "linked", 4)
    outside = tmp_path / "outside"
    outside.write_text("mine")
    incoming = new / ".ckptsync" / "incoming" / "checkpoint-linked.v0"
    incoming.mkdir(parents=True)
    (incoming / "config.json").symlink_to(outside)

    done = tool("resume", "linked", "--output-dir", new, "--download-only")

    assert done.returncode == 5
    assert "leads through a symbolic link" in done.stderr
    assert outside.read_text() == "mine"


@pytest.mark.slow
def test_the_record_of_a_resume_says_who_the_training_is(tool: Tool, server: ServerProcess, tmp_path: Path, new: Path) -> None:
    publish_steps(server, tmp_path / "old", "who", 4)

    done = tool("resume", "local/tests/who", "--output-dir", new, "--", *program(TELL), WANDB_PROJECT="another")

    assert done.returncode == 0, done.stderr
    values = json.loads((new / ".ckptsync" / "run.json").read_text())
    assert (values["entity"], values["project"], values["run_id"]) == ("local", "tests", "who")
    assert values["resumed_step"] == 4
    assert values["command"][0] == sys.executable
    assert events(new, "resumed") == [("resumed", 4)]
    assert (new / ".ckptsync" / "run.json").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_after_going_back_by_choice_a_restart_goes_on_from_there(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for step in (4, 8):
        make_checkpoint(out, step, content=f"back {step}")
        assert tool.watch_once(out, "back").returncode == 0
    fails = program(
        "with open('starts', 'a') as starts: starts.write(os.environ['CKPTSYNC_RESUME_FROM'] + '\\n')",
        "sys.exit(9)",
    )

    done = tool("resume", "back:step-4", "--output-dir", out, "--max-restarts", "1", "--", *fails, timeout=120)
    again = tool("run", "--run-id", "back", "--output-dir", out, "--", *fails, timeout=120)

    assert (done.returncode, again.returncode) == (9, 9), done.stderr
    assert (tool.home / "starts").read_text().split() == [str(out / "checkpoint-4")] * 3
