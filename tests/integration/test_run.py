"""`run` as a job script calls it: the same line again and again, whatever happened in between."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ckptsync import record
from ckptsync.upload.spool import Spool
from tests.checkpoints import make_checkpoint
from tests.integration.conftest import Ended, Tool, events, kept, kill_tree, make_run, program, publish, refusal, wait_for
from tests.server_process import ServerProcess

STEP = (
    "found = sorted(int(path.name[11:]) for path in pathlib.Path(sys.argv[1]).glob('checkpoint-*'))",
    "print('goes on from', os.environ.get('CKPTSYNC_RESUME_FROM', 'nothing'), 'as', os.environ['WANDB_RUN_ID'])",
    "step = found[-1] + 4 if found else 4",
    "make_checkpoint(pathlib.Path(sys.argv[1]), step, content=os.environ['WANDB_RUN_ID'], max_steps=8)",
)
"""A training of 8 steps that is cut short after each checkpoint, at every fourth step."""

SAVES_AT_SIGTERM = (
    "def leave(number, frame):",
    "    make_checkpoint(pathlib.Path(sys.argv[1]), 8, content=os.environ['WANDB_RUN_ID'])",
    "    sys.exit(0)",
    "signal.signal(signal.SIGTERM, leave)",
    "make_checkpoint(pathlib.Path(sys.argv[1]), 4, content=os.environ['WANDB_RUN_ID'])",
    "print('training', flush=True)",
    "time.sleep(600)",
)


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.slow
def test_the_same_line_starts_resumes_and_in_the_end_starts_nothing(tool: Tool, server: ServerProcess, output_dir: Path) -> None:
    line: list[str | Path] = ["run", "--output-dir", output_dir, "--", *program(*STEP), str(output_dir)]

    first, second, third = tool(*line), tool(*line), tool(*line)

    run_id = record.read(output_dir).text("run_id")
    assert run_id is not None
    assert (first.returncode, second.returncode, third.returncode) == (0, 0, 0), third.stderr
    assert f"goes on from nothing as {run_id}" in first.stdout
    assert f"goes on from {output_dir / 'checkpoint-4'} as {run_id}" in second.stdout
    assert third.stdout == ""
    assert "the training is finished" in third.stderr
    assert kept(server, run_id) == [(4, ["step-4"]), (8, ["final", "latest", "step-8"])]


@pytest.mark.slow
def test_a_run_in_an_empty_folder_goes_on_from_the_store(
    tool: Tool, server: ServerProcess, tmp_path: Path, output_dir: Path
) -> None:
    make_run(server, "elsewhere")
    publish(server, make_checkpoint(tmp_path / "old", 4, content="elsewhere", max_steps=8), "elsewhere")

    done = tool("run", "--run-id", "elsewhere", "--output-dir", output_dir, "--", *program(*STEP), str(output_dir))

    assert done.returncode == 0, done.stderr
    assert f"goes on from {output_dir / 'checkpoint-4'} as elsewhere" in done.stdout


def test_a_sigterm_reaches_the_whole_group_and_what_it_saves_is_durable_before_75(
    tool: Tool, server: ServerProcess, tmp_path: Path, output_dir: Path, ended: Ended
) -> None:
    # A shell that passes nothing on stands for `accelerate launch`.
    trainer = [*program(*SAVES_AT_SIGTERM), str(output_dir)]
    shell = ["sh", "-c", 'trap "" TERM; "$@" & wait $!; wait', "launcher", *trainer]
    log = tmp_path / "log"
    process = ended(tool.start("run", "--run-id", "preempted", "--output-dir", output_dir, "--", *shell, log=log))
    wait_for(lambda: "training\n" in log.read_text(), what="the training")

    process.terminate()
    code = process.wait(60)

    assert code == 75, log.read_text()
    assert [step for step, _ in kept(server, "preempted")][-1] == 8
    assert "latest" in kept(server, "preempted")[-1][1]
    assert not Spool(output_dir).pending()
    assert events(output_dir, "preempted") == [("preempted", 8)]


def test_a_second_sigterm_kills_the_training_and_quits(tool: Tool, tmp_path: Path, output_dir: Path, ended: Ended) -> None:
    stubborn = program(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)", "print('pid', os.getpid(), flush=True)", "time.sleep(600)"
    )
    log = tmp_path / "log"
    process = ended(tool.start("run", "--run-id", "stubborn", "--output-dir", output_dir, "--", *stubborn, log=log))
    wait_for(lambda: "pid " in log.read_text(), what="the training")
    trainer = int(next(line for line in log.read_text().splitlines() if line.startswith("pid")).split()[1])
    process.terminate()
    time.sleep(0.7)
    waits = process.poll() is None

    process.terminate()
    code = process.wait(20)

    assert waits
    assert code == 128 + signal.SIGTERM
    wait_for(lambda: not _lives(trainer), seconds=10, what="the end of the training")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_the_training_s_own_failure_is_passed_on_and_what_it_saved_is_kept(
    tool: Tool, server: ServerProcess, output_dir: Path
) -> None:
    fails = program("make_checkpoint(pathlib.Path(sys.argv[1]), 4, content='fails')", "sys.exit(9)")

    done = tool("run", "--run-id", "fails", "--output-dir", output_dir, "--max-restarts", "0", "--", *fails, str(output_dir))

    assert done.returncode == 9
    assert [step for step, _ in kept(server, "fails")] == [4]


@pytest.mark.slow
def test_without_the_store_a_checkpoint_that_is_here_is_enough_and_none_is_an_error(
    tool: Tool, tmp_path: Path, output_dir: Path, ended: Ended
) -> None:
    make_checkpoint(output_dir, 4, content="no-store")
    tells = ["print('goes on from', os.environ.get('CKPTSYNC_RESUME_FROM'), flush=True)", "time.sleep(600)"]
    away = {"WANDB_BASE_URL": "http://127.0.0.1:9"}
    log = tmp_path / "log"

    empty = tool("run", "--run-id", "x", "--output-dir", tmp_path / "empty", "--retry-for", "1", "--", "true", timeout=60, **away)
    line: list[str | Path] = [
        "run",
        "--run-id",
        "no-store",
        "--output-dir",
        output_dir,
        "--retry-for",
        "1",
        "--",
        *program(*tells),
    ]
    process = ended(tool.start(*line, log=log, **away))
    wait_for(lambda: "goes on from" in log.read_text(), what="the training")

    assert empty.returncode == 6
    refusal(empty)
    assert f"goes on from {output_dir / 'checkpoint-4'}" in log.read_text()
    assert process.poll() is None


def test_the_placeholder_at_a_fresh_start_is_refused(tool: Tool, output_dir: Path) -> None:
    done = tool("run", "--run-id", "fresh", "--output-dir", output_dir, "--", "true", "{checkpoint}")

    assert done.returncode == 2
    assert "nothing to resume from" in refusal(done)


@pytest.mark.slow
def test_beside_a_watcher_that_is_there_already_no_second_one_is_started(
    tool: Tool, server: ServerProcess, tmp_path: Path, output_dir: Path, ended: Ended
) -> None:
    output_dir.mkdir()
    watcher = ended(tool.start("watch", output_dir, "--run-id", "beside", "--quiet-period", "0.2", log=tmp_path / "watch.log"))
    wait_for(lambda: "watching" in (tmp_path / "watch.log").read_text(), what="the watcher")

    done = tool("run", "--run-id", "beside", "--output-dir", output_dir, "--", *program(*STEP), str(output_dir))

    assert done.returncode == 0, done.stderr
    assert f"pid {watcher.pid}" in done.stderr
    wait_for(lambda: kept(server, "beside"), what="the version")
    assert watcher.poll() is None


def test_run_json_says_who_it_is_and_only_its_owner_can_read_it(tool: Tool, output_dir: Path) -> None:
    line: list[str | Path] = ["run", "--output-dir", output_dir, "--", "true"]

    done = tool(*line, WANDB_RUN_ID="given")
    path = output_dir / ".ckptsync" / "run.json"
    values = json.loads(path.read_text())

    assert done.returncode == 0, done.stderr
    assert (values["version"], values["run_id"], values["project"], values["entity"]) == (1, "given", "tests", "local")
    assert values["command"] == ["true"]
    assert values["cwd"] == str(tool.home)
    assert path.stat().st_mode & 0o077 == 0


def test_of_two_that_are_started_together_one_trains_and_the_other_says_who(
    tool: Tool, server: ServerProcess, tmp_path: Path, output_dir: Path, ended: Ended
) -> None:
    trains = program(
        "print('training', flush=True)",
        "pathlib.Path(sys.argv[1]).joinpath(str(os.getpid())).touch()",
        "time.sleep(3)",
        "make_checkpoint(pathlib.Path(sys.argv[1]), 4, content='twice', max_steps=4)",
    )
    line: list[str | Path] = [
        "run",
        "--run-id",
        "twice",
        "--output-dir",
        output_dir,
        "--quiet-period",
        "0.2",
        "--",
        *trains,
        str(tmp_path),
    ]
    logs = [tmp_path / "one", tmp_path / "two"]
    make_checkpoint(output_dir, 2, content="twice")

    processes = [ended(tool.start(*line, log=log)) for log in logs]
    codes = sorted(process.wait(120) for process in processes)

    said = [log.read_text() for log in logs]
    assert codes == [0, 7], said
    assert sum("training\n" in each for each in said) == 1
    assert sum("is already trained in by" in each for each in said) == 1


@pytest.mark.slow
def test_a_run_that_logs_nothing_itself_is_resumed_from_its_versions(
    tool: Tool, server: ServerProcess, tmp_path: Path, output_dir: Path
) -> None:
    old = tmp_path / "old"
    make_checkpoint(old, 4, content="silent")
    assert tool.watch_once(old, "silent").returncode == 0
    words = program("print('goes on from', os.environ.get('CKPTSYNC_RESUME_FROM'), os.environ.get('WANDB_RESUME'))")

    done = tool("resume", "silent", "--output-dir", output_dir, "--", *words)

    assert done.returncode == 0, done.stderr
    assert f"goes on from {output_dir / 'checkpoint-4'}" in done.stdout


def test_a_folder_of_another_run_is_refused_with_the_way_out(tool: Tool, output_dir: Path) -> None:
    make_checkpoint(output_dir, 8, max_steps=8)
    record.update(output_dir, run_id="run-a", project="tests")

    done = tool("run", "--run-id", "run-c", "--output-dir", output_dir, "--", *program("print('trains')"))

    assert done.returncode == 2
    assert "are of run run-a, not of run-c" in refusal(done)
    assert "--run-id run-a" in done.stderr
    assert done.stdout == ""


def test_a_folder_of_another_project_or_entity_is_refused_with_the_way_out(tool: Tool, output_dir: Path) -> None:
    make_checkpoint(output_dir, 8)
    record.update(output_dir, run_id="one-home", project="llama", started_in="tests", entity="local")
    line: list[str | Path] = ["--output-dir", output_dir, "--", *program("print('trains')")]

    typo = tool("run", "--run-id", "one-home", "--project", "typo", *line)
    variable = tool("resume", "one-home", *line, WANDB_PROJECT="typo")
    pushed = tool("push", output_dir / "checkpoint-8", "--project", "typo")
    entity = tool("run", "--run-id", "one-home", "--entity", "somebody", *line)

    assert [each.returncode for each in (typo, variable, pushed, entity)] == [2, 2, 2, 2]
    for done in (typo, variable, pushed):
        assert "are of run one-home in project llama, not in project typo" in refusal(done)
        assert "Give --project llama, or take a new output folder" in refusal(done)
    assert "are of run one-home in project local/llama, not in project somebody/tests" in refusal(entity)
    assert "Give --project llama --entity local" in refusal(entity)
    assert typo.stdout + variable.stdout + entity.stdout == ""
    assert record.read(output_dir).text("project") == "llama"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("known", "options"),
    [
        ({"project": "mine", "started_in": "tests"}, []),
        ({"project": "mine", "started_in": "tests"}, ["--project", "mine"]),
        ({"project": "tests"}, ["--entity", "local"]),
        ({}, ["--project", "any"]),
    ],
)
def test_a_folder_is_taken_in_the_project_that_it_is_in_or_was_started_in(
    tool: Tool, output_dir: Path, known: dict[str, str], options: list[str]
) -> None:
    make_checkpoint(output_dir, 8)
    record.update(output_dir, run_id="home", **known)

    done = tool("run", "--run-id", "home", "--output-dir", output_dir, *options, "--", *program("print('trains')"))

    assert "trains" in done.stdout, done.stderr
    assert record.read(output_dir).text("started_in") == (known.get("started_in") or known.get("project") or "any")


@pytest.mark.slow
def test_a_folder_that_is_durable_in_another_store_alone_may_go_to_another_project(
    tool: Tool, tmp_path: Path, output_dir: Path
) -> None:
    make_checkpoint(output_dir, 8)
    assert tool.watch_once(output_dir, "moves").returncode == 0
    with ServerProcess(tmp_path / "other") as other:
        there = Tool(tmp_path / "home-there", other)
        new = ("--project", "new", "--entity", "local")

        done = there("run", "--run-id", "moves", *new, "--output-dir", output_dir, "--", *program("print('trains')"))

    assert "trains" in done.stdout, done.stderr


def test_a_program_that_saved_nothing_is_warned_of_in_the_end(tool: Tool, output_dir: Path) -> None:
    done = tool("run", "--run-id", "saves-nothing", "--output-dir", output_dir, "--", *program("print('trains')"))

    assert done.returncode == 0
    assert f"saved no checkpoint in {output_dir}" in done.stderr


@pytest.mark.slow
def test_a_run_without_an_id_says_which_one_the_next_machine_needs(tool: Tool, output_dir: Path) -> None:
    saves = program("make_checkpoint(pathlib.Path(sys.argv[1]), 4, content='unnamed', max_steps=4)")

    done = tool("run", "--output-dir", output_dir, "--quiet-period", "0.2", "--", *saves, str(output_dir))

    assert done.returncode == 0, done.stderr
    assert f"on another machine, add --run-id {record.read(output_dir).text('run_id')}" in done.stderr


@pytest.mark.slow
def test_artifacts_named_after_a_run_that_logs_nothing_itself_are_found_on_the_next_machine(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    line = ["--name-by", "run-name", "--quiet-period", "0.2", "--", *program(*STEP)]
    first, second = tmp_path / "first", tmp_path / "second"
    name = "silent-by-name"
    assert tool("run", "--run-id", "by-name", "--output-dir", first, *line, str(first), WANDB_NAME=name).returncode == 0

    done = tool("run", "--run-id", "by-name", "--output-dir", second, *line, str(second), WANDB_NAME=name)

    assert done.returncode == 0, done.stderr
    assert f"goes on from {second / 'checkpoint-4'} as by-name" in done.stdout


@pytest.mark.slow
def test_of_two_runs_that_share_a_name_and_compute_the_same_the_second_is_told(
    tool: Tool, server: ServerProcess, tmp_path: Path, output_dir: Path
) -> None:
    saves = program("make_checkpoint(pathlib.Path(sys.argv[1]), 4, content='twins', max_steps=4, saved_at=1e9)")
    line: list[str | Path] = ["--output-dir", output_dir, "--name-by", "run-name", "--quiet-period", "0.2", "--", *saves]
    first = tool("run", "--run-id", "twin-a", *line, output_dir, WANDB_NAME="twins")
    shutil.rmtree(output_dir)

    second = tool("run", "--run-id", "twin-b", *line, output_dir, WANDB_NAME="twins")

    assert (first.returncode, second.returncode) == (0, 1), second.stderr
    assert "checkpoint-twins:v0 has the same bytes and is a checkpoint of run twin-a" in second.stderr
    assert not list(Spool(output_dir).receipts)


def test_a_training_that_restarts_from_scratch_is_ended(tool: Tool, tmp_path: Path, output_dir: Path) -> None:
    make_checkpoint(output_dir, 8, content="over")
    restarts = program(
        "make_checkpoint(pathlib.Path(sys.argv[1]), 4, content='over again')",
        "pathlib.Path(sys.argv[2]).write_text(str(os.getpid()))",
        "time.sleep(600)",
    )
    line: list[str | Path] = ["run", "--run-id", "over", "--output-dir", output_dir, "--quiet-period", "0.2", "--", *restarts]

    done = tool(*line, output_dir, tmp_path / "pid", timeout=120)

    assert done.returncode == 5, done.stderr
    assert "so the training started over" in refusal(done)
    assert not _lives(int((tmp_path / "pid").read_text()))


@pytest.mark.slow
def test_a_program_that_names_another_project_itself_is_found_there_by_the_same_line(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    names_its_own = (
        "from ckptsync import record",
        "record.update(pathlib.Path(sys.argv[1]), project='mine')",
        *STEP,
    )
    line = ["--quiet-period", "0.2", "--", *program(*names_its_own)]
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert tool("run", "--run-id", "mine", "--output-dir", first, *line, str(first)).returncode == 0

    again = tool("run", "--run-id", "mine", "--output-dir", second, *line, str(second))
    finished = tool("run", "--run-id", "mine", "--output-dir", third, *line, str(third))

    assert again.returncode == 0, again.stderr
    assert "logs to project mine: continuing it there" in again.stderr
    assert f"goes on from {second / 'checkpoint-4'} as mine" in again.stdout
    assert "the training is finished" in finished.stderr
    assert [row["step"] for row in tool.json("list", "local/mine/mine") if row["kind"] == "checkpoint"] == [8, 4]


@pytest.mark.slow
@pytest.mark.parametrize("unpinned", [[8], [8, 12]])
def test_a_save_that_was_not_pinned_when_the_machine_died_is_resumed_from_and_is_no_restart(
    tool: Tool, server: ServerProcess, tmp_path: Path, unpinned: list[int]
) -> None:
    out, run_id = tmp_path / "out", f"unpinned-{len(unpinned)}"
    save = f"save = lambda step: make_checkpoint(pathlib.Path({str(out)!r}), step)"
    line = ("run", "--run-id", run_id, "--output-dir", out, "--quiet-period", "0.2", "--backlog", "all", "--")
    first = tool(*line, *program(save, "save(4)"))
    for step in unpinned:
        make_checkpoint(out, step)

    done = tool(*line, *program(save, "print(sys.argv[1])", "time.sleep(2)", "save(16)"), "{checkpoint}")

    assert (first.returncode, done.returncode) == (0, 0), done.stderr
    assert Path(done.stdout.strip()).name == f"checkpoint-{unpinned[-1]}"
    assert [step for step, _ in kept(server, run_id)] == [4, unpinned[-1], 16]
    assert not Spool(out).torn()


INSISTS_ON_AN_EMPTY_FOLDER = (
    "out = pathlib.Path(sys.argv[1])",
    "found = sorted(int(path.name[11:]) for path in out.glob('checkpoint-*'))",
    # As the examples of transformers 4.57 have it.
    "if out.is_dir() and not found and list(out.iterdir()): sys.exit(f'{out} is not empty: {list(out.iterdir())}')",
    "time.sleep(1)",
    "step = found[-1] + 4 if found else 4",
    "make_checkpoint(out, step, content=os.environ['WANDB_RUN_ID'], max_steps=8)",
    "sys.exit(0 if step == 8 else 1)",
)


def test_a_program_that_insists_on_an_empty_output_folder_starts_and_goes_on(
    tool: Tool, server: ServerProcess, output_dir: Path
) -> None:
    command = [*program(*INSISTS_ON_AN_EMPTY_FOLDER), str(output_dir)]
    line: list[str | Path] = ["run", "--output-dir", output_dir, "--quiet-period", "0.2", "--", *command]

    first, second = tool(*line), tool(*line)

    run_id = record.read(output_dir).text("run_id")
    assert run_id is not None
    assert "is not empty" not in first.stderr
    assert "no file events" not in first.stderr
    assert (first.returncode, second.returncode) == (1, 0), second.stderr
    assert kept(server, run_id) == [(4, ["step-4"]), (8, ["final", "latest", "step-8"])]
    assert not (output_dir.parent / ".out.ckptsync").exists()
    assert record.path_of(output_dir) == output_dir / ".ckptsync" / "run.json"


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint_is_continued_in_the_folder_that_is_still_empty(
    tool: Tool, output_dir: Path, tmp_path: Path, ended: Ended
) -> None:
    waits = program(*INSISTS_ON_AN_EMPTY_FOLDER[:3], "print('\\nas', os.environ['WANDB_RUN_ID'], flush=True)", "time.sleep(600)")
    line: list[str | Path] = ["run", "--output-dir", output_dir, "--", *waits, str(output_dir)]
    ids = []
    for number in range(2):
        log = tmp_path / f"log-{number}"
        process = ended(tool.start(*line, log=log))
        wait_for(lambda log=log: "\nas " in log.read_text(), what="the training")  # type: ignore[misc]
        ids += [line.split()[1] for line in log.read_text().splitlines() if line.startswith("as ")]
        kill_tree(process.pid)

    assert ids[0] == ids[1]
    assert list(output_dir.iterdir()) == []


def test_a_job_takes_over_from_a_watcher_that_is_killed(
    tool: Tool, server: ServerProcess, output_dir: Path, ended: Ended
) -> None:
    output_dir.mkdir()
    log = output_dir.parent / "log"
    watcher = ended(tool.start("watch", output_dir, "--run-id", "taken", log=log))
    wait_for(lambda: (output_dir / ".ckptsync/lock").exists() and (output_dir / ".ckptsync/lock").read_text(), what="the lock")
    saves = program(
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.1)",
        "make_checkpoint(pathlib.Path(sys.argv[1]), 4, max_steps=4)",
    )
    go = output_dir.parent / "go"
    job_log = output_dir.parent / "job-log"
    line: list[str | Path] = [
        "run",
        "--run-id",
        "taken",
        "--output-dir",
        output_dir,
        "--quiet-period",
        "0.2",
        "--",
        *saves,
        output_dir,
        go,
    ]
    job = ended(tool.start(*line, log=job_log))
    wait_for(lambda: "leaving the uploads to it" in job_log.read_text(), what="the job")

    kill_tree(watcher.pid)
    go.touch()

    assert job.wait(120) == 0, job_log.read_text()
    assert [step for step, _ in kept(server, "taken")] == [4]


def watcher_of(tool: Tool, output_dir: Path, run_id: str, ended: Ended) -> None:
    """Start a watcher, and wait until it holds the folder."""
    output_dir.mkdir(exist_ok=True)
    ended(tool.start("watch", output_dir, "--run-id", run_id, "--quiet-period", "0.2", log=output_dir.parent / "watch-log"))
    wait_for(lambda: (output_dir / ".ckptsync/lock").exists() and (output_dir / ".ckptsync/lock").read_text(), what="the lock")


def test_a_job_beside_the_watcher_of_another_run_is_refused(tool: Tool, output_dir: Path, ended: Ended) -> None:
    watcher_of(tool, output_dir, "theirs", ended)

    done = tool("run", "--run-id", "ours", "--output-dir", output_dir, "--", "true")

    assert done.returncode == 7
    assert "run tests/theirs" in refusal(done) or "run local/tests/theirs" in refusal(done)
    assert "--run-id theirs" in done.stderr
    assert record.read(output_dir).text("run_id") != "ours"


def test_a_job_that_is_refused_leaves_the_record_of_the_one_that_trains(
    tool: Tool, tmp_path: Path, output_dir: Path, ended: Ended
) -> None:
    log = tmp_path / "log"
    ended(tool.start("run", "--run-id", "right", "--output-dir", output_dir, "--", *program("time.sleep(600)"), log=log))
    wait_for(lambda: record.read(output_dir).values.get("training"), what="the training")

    done = tool("run", "--run-id", "typo", "--output-dir", output_dir, "--", "true")

    assert done.returncode == 7
    assert record.read(output_dir).text("run_id") == "right"


@pytest.mark.slow
def test_a_training_that_starts_over_beside_another_watcher_is_an_error(
    tool: Tool, server: ServerProcess, output_dir: Path, ended: Ended
) -> None:
    make_checkpoint(output_dir, 8)
    assert tool.watch_once(output_dir, "anew").returncode == 0
    watcher_of(tool, output_dir, "anew", ended)
    starts_over = program(
        "for step in (2, 4):",
        "    make_checkpoint(pathlib.Path(sys.argv[1]), step, content='over')",
        "    time.sleep(4)",
        "time.sleep(600)",
    )

    done = tool("run", "--run-id", "anew", "--output-dir", output_dir, "--no-hook", "--", *starts_over, output_dir, timeout=120)

    assert done.returncode == 5, done.stderr
    assert "started over" in refusal(done)
    assert [step for step, _ in kept(server, "anew")] == [8]


@pytest.mark.slow
def test_a_last_save_that_is_incomplete_beside_another_watcher_is_an_error(
    tool: Tool, server: ServerProcess, output_dir: Path, ended: Ended
) -> None:
    watcher_of(tool, output_dir, "torn", ended)
    saves = program(
        "make_checkpoint(pathlib.Path(sys.argv[1]), 4)",
        "make_checkpoint(pathlib.Path(sys.argv[1]), 8, without=['trainer_state.json'])",
    )

    done = tool("run", "--run-id", "torn", "--output-dir", output_dir, "--", *saves, output_dir, timeout=120)

    assert done.returncode == 5, done.stderr
    assert "checkpoint-8 is not durable: incomplete" in refusal(done)


@pytest.mark.slow
def test_a_job_beside_a_watcher_that_uploads_nothing_is_an_error(
    tool: Tool, server: ServerProcess, output_dir: Path, ended: Ended
) -> None:
    output_dir.mkdir()
    watcher = ended(tool.start("watch", output_dir, "--run-id", "stopped", log=output_dir.parent / "log"))
    wait_for(lambda: (output_dir / ".ckptsync/lock").exists() and (output_dir / ".ckptsync/lock").read_text(), what="the lock")
    os.kill(watcher.pid, signal.SIGSTOP)
    saves = program("make_checkpoint(pathlib.Path(sys.argv[1]), 4, max_steps=4)")
    words = ["--run-id", "stopped", "--quiet-period", "0.2", "--retry-for", "2", "--force"]
    line: list[str | Path] = ["run", "--output-dir", output_dir, *words, "--", *saves, output_dir]

    first, again = tool(*line), tool(*line)

    assert (first.returncode, again.returncode) == (1, 1)
    for done in (first, again):
        assert "checkpoint-4 is not durable: another watcher holds" in done.stderr


def test_a_signal_that_a_wrapper_passes_on_again_is_no_second_one(
    tool: Tool, server: ServerProcess, tmp_path: Path, output_dir: Path, ended: Ended
) -> None:
    log = tmp_path / "log"
    trainer = [*program(*SAVES_AT_SIGTERM), str(output_dir)]
    process = ended(tool.start("run", "--run-id", "echoed", "--output-dir", output_dir, "--", *trainer, log=log))
    wait_for(lambda: "training\n" in log.read_text(), what="the training")

    process.terminate()
    time.sleep(0.05)
    process.terminate()

    assert process.wait(60) == 75, log.read_text()
    assert [step for step, _ in kept(server, "echoed")][-1] == 8


def test_an_output_folder_that_is_moved_away_before_it_is_durable_is_an_error(
    tool: Tool, server: ServerProcess, output_dir: Path
) -> None:
    moves = program(
        "out = pathlib.Path(sys.argv[1])",
        "make_checkpoint(out, 4, max_steps=4)",
        "while not list(out.glob('.ckptsync/spool/*')): time.sleep(0.05)",
        "time.sleep(0.5)",
        "out.rename(str(out) + '-final')",
    )
    server.faults([{"match": {"method": "PUT"}, "count": 50, "action": {"delay": 20}}])

    done = tool("run", "--run-id", "moved", "--output-dir", output_dir, "--quiet-period", "0.2", "--", *moves, output_dir)
    server.faults([])

    assert done.returncode != 0, done.stderr
    assert "was moved or deleted with checkpoint-4 not durable" in refusal(done)


CLEANS_UP = (
    "import shutil",
    "out = pathlib.Path(sys.argv[1])",
    "make_checkpoint(out, 4, max_steps=int(sys.argv[2]))",
    "while not list(out.glob('.ckptsync/receipts/*.json')): time.sleep(0.05)",
    "shutil.rmtree(out)",
)


@pytest.mark.parametrize(("last", "code"), [(4, 0), (8, 1)])
def test_a_program_that_deletes_its_output_folder_at_its_end_must_have_made_its_last_step_durable(
    tool: Tool, server: ServerProcess, output_dir: Path, last: int, code: int
) -> None:
    words = [*program(*CLEANS_UP), str(output_dir), str(last)]

    done = tool("run", "--run-id", f"cleans-{last}", "--output-dir", output_dir, "--quiet-period", "0.2", "--", *words)

    assert done.returncode == code, done.stderr
    assert [step for step, _ in kept(server, f"cleans-{last}")] == [4]
    assert not output_dir.exists()
    assert "saved no checkpoint" not in done.stderr
    assert code == 0 or "is gone: what was saved in it after the last scan is not durable" in refusal(done)


@pytest.mark.parametrize("before", [[], ["left-over.txt"]])
def test_a_program_that_deletes_and_makes_its_output_folder_at_its_start_meets_nothing_of_ours(
    tool: Tool, output_dir: Path, before: list[str]
) -> None:
    output_dir.mkdir()
    line = 'rm -rf "$1"; mkdir "$1"; [ -z "$(ls -A "$1")" ]; echo started'
    words: list[str | Path] = ["run", "--run-id", "makes", "--output-dir", output_dir, "--", "sh", "-ec", line, "sh", output_dir]
    for _ in range(3):
        for name in before:
            (output_dir / name).touch()

        done = tool(*words)

        assert "started" in done.stdout, done.stderr
        assert not (output_dir.parent / f".{output_dir.name}.ckptsync").exists()
        shutil.rmtree(output_dir)
        output_dir.mkdir()


def test_a_training_that_deletes_its_output_folder_and_fails_is_started_again_in_a_new_one(
    tool: Tool, server: ServerProcess, output_dir: Path
) -> None:
    deletes = program(
        "out = pathlib.Path(sys.argv[1])",
        "again = out.with_name('again')",
        "import shutil",
        "if not again.exists(): again.touch(); shutil.rmtree(out); sys.exit(3)",
        "make_checkpoint(out, 4, max_steps=4)",
    )
    words: list[str | Path] = ["--run-id", "deletes", "--output-dir", output_dir, "--max-restarts", "1", "--quiet-period", "0.2"]

    done = tool("run", *words, "--", *deletes, output_dir)

    assert done.returncode == 0, done.stderr
    assert kept(server, "deletes") == [(4, ["final", "latest", "step-4"])]


def test_a_state_that_a_killed_job_left_beside_is_not_taken_up_by_another_folder_of_that_name(
    tool: Tool, server: ServerProcess, output_dir: Path, ended: Ended
) -> None:
    beside = output_dir.parent / f".{output_dir.name}.ckptsync"
    process = ended(
        tool.start("run", "--run-id", "older", "--output-dir", output_dir, "--", "sleep", "600", log=output_dir.parent / "log")
    )
    wait_for(lambda: (beside / "training").exists() and (beside / "training").read_text(), what="the training")
    kill_tree(process.pid)
    output_dir.rmdir()
    make_checkpoint(output_dir, 4)

    done = tool.watch_once(output_dir, "newer")

    assert done.returncode == 0, done.stderr
    assert [step for step, _ in kept(server, "newer")] == [4]
    assert record.read(output_dir).attempts == ()
    assert not beside.exists()


@pytest.mark.slow
def test_a_newest_checkpoint_that_is_a_link_is_an_error(tool: Tool, server: ServerProcess, output_dir: Path) -> None:
    links = program(
        "out = pathlib.Path(sys.argv[1])",
        "make_checkpoint(out, 4)",
        "make_checkpoint(out.parent, 8, max_steps=8)",
        "(out / 'checkpoint-8').symlink_to(out.parent / 'checkpoint-8')",
        "time.sleep(1)",
    )

    done = tool("run", "--run-id", "linked", "--output-dir", output_dir, "--quiet-period", "0.2", "--", *links, output_dir)

    assert done.returncode == 5, done.stderr
    assert "checkpoint-8 is not durable: incomplete: it is a symbolic link" in refusal(done)


def test_where_sigchld_is_ignored_a_training_that_fails_still_counts_as_failed(tool: Tool, output_dir: Path) -> None:
    words: list[str | Path] = ["run", "--run-id", "ignored", "--output-dir", output_dir, "--", "sh", "-c", "exit 3"]
    command = ["sh", "-c", 'trap "" CHLD; exec "$@"', "sh", *tool.command(*words)]

    done = subprocess.run(command, env=tool.environment, cwd=tool.home, capture_output=True, text=True, timeout=120)

    assert done.returncode == 3, done.stderr


def test_a_program_that_names_its_own_run_is_resumed_by_the_same_line(tool: Tool, output_dir: Path) -> None:
    names_its_own = (
        "import wandb",
        "from ckptsync.trainer import tiny",
        "wandb.init(id='own-7', resume='allow')",
        "trainer = tiny.build(tiny.parse(sys.argv[1:]))",
        "trainer.train()",
        "print('trained to', trainer.state.global_step)",
    )
    words = [*program(*names_its_own), "--output-dir", str(output_dir), "--save-steps", "4", "--max-steps"]
    line: list[str | Path] = ["run", "--run-id", "own7", "--output-dir", output_dir, "--quiet-period", "0.2", "--extend", "--"]
    first = tool(*line, *words, "4", timeout=120)

    again = tool(*line, *words, "8", timeout=120)

    assert first.returncode == 0, first.stderr
    assert "logs to run tests/own-7, but its checkpoints go to tests/own7" in first.stderr
    assert again.returncode == 0, again.stderr
    assert "trained to 8" in again.stdout
    known = record.read(output_dir)
    assert known.text("run_id") == "own7"
    assert known.values["logs_to"] == {"project": "tests", "run_id": "own-7"}


LISTS_DESCRIPTORS = (
    "found = {int(name): os.path.realpath(f'/proc/self/fd/{name}') for name in os.listdir('/proc/self/fd')}",
    "pathlib.Path(sys.argv[1]).write_text(repr({each: path for each, path in found.items() if not path.startswith('/proc')}))",
    "above = {each: os.path.realpath(f'/proc/{os.getppid()}/fd/{each}') for each in range(3)}",
    "pathlib.Path(sys.argv[2]).write_text(repr(above))",
    "make_checkpoint(pathlib.Path(sys.argv[3]), 4, max_steps=4)",
)


def test_the_training_has_the_descriptors_that_it_has_without_ckptsync(tool: Tool, tmp_path: Path, output_dir: Path) -> None:
    alone, below, parent = tmp_path / "alone", tmp_path / "below", tmp_path / "parent"
    words = program(*LISTS_DESCRIPTORS)
    head = tool.command("run", "--run-id", "passed", "--output-dir", output_dir, "--quiet-period", "0.2", "--")
    with (tmp_path / "config").open("w+b") as config:
        common: dict[str, Any] = {"env": tool.environment, "timeout": 120, "check": True, "pass_fds": [config.fileno()]}
        subprocess.run([*words, alone, parent, tmp_path / "other"], **common)
        subprocess.run([*head, *words, below, parent, output_dir], **common)

    assert str(tmp_path / "config") in alone.read_text()
    assert below.read_text() == alone.read_text()


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_where_a_standard_stream_is_closed_a_job_runs_and_no_file_takes_its_place(
    tool: Tool, server: ServerProcess, tmp_path: Path, output_dir: Path, closed: str
) -> None:
    alone, below, parent = tmp_path / "alone", tmp_path / "below", tmp_path / "parent"
    words = program(*LISTS_DESCRIPTORS)
    run_id = f"closed-{closed[0]}-{len(closed)}"
    head = tool.command("run", "--run-id", run_id, "--output-dir", output_dir, "--quiet-period", "0.2", "--")
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    common: dict[str, Any] = {"env": tool.environment, "timeout": 120, "stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    subprocess.run([*shell, *words, alone, parent, tmp_path / "other"], **common)

    done = subprocess.run([*shell, *head, *words, below, parent, output_dir], **common)

    assert done.returncode == 0, done.stderr
    assert sorted(ast.literal_eval(below.read_text())) == sorted(ast.literal_eval(alone.read_text()))
    above = ast.literal_eval(parent.read_text())
    assert {above[number] for number, mark in enumerate(("0<&-", "1>&-", "2>&-")) if mark in closed} == {os.devnull}
    assert kept(server, run_id) == [(4, ["final", "latest", "step-4"])]


@pytest.mark.slow
def test_a_second_train_in_the_same_output_folder_is_refused_by_its_name(
    tool: Tool, server: ServerProcess, output_dir: Path
) -> None:
    trains_twice = (
        "from ckptsync.trainer import tiny",
        "trainer = tiny.build(tiny.parse(sys.argv[1:]))",
        "trainer.train()",
        "trainer.train()",
        "import time; time.sleep(60)",
    )
    words = [*program(*trains_twice), "--output-dir", str(output_dir), "--max-steps", "8", "--save-steps", "4"]
    line: list[str | Path] = ["run", "--run-id", "train-twice", "--output-dir", output_dir, "--quiet-period", "0.2", "--"]

    done = tool(*line, *words, "--report-to", "none", "--step-seconds", "0.3", timeout=120)

    assert done.returncode == 5, done.stderr
    assert "checkpoint-4 was saved by a further train() of the same process in this output_dir" in refusal(done)
    assert "Give each train() an output_dir of its own" in done.stderr
    assert kept(server, "train-twice")[-1] == (8, ["final", "latest", "step-8"])
