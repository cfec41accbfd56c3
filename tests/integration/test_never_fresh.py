"""Checkpoints of a run that can't be resumed from: the training doesn't silently start from scratch beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.integration.conftest import Tool, kept, program, refusal
from tests.server_process import ServerProcess

ONLY_MODEL = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


def only_model(folder: Path) -> None:
    make_checkpoint(folder, 4, without=ONLY_MODEL)


def linked_away(folder: Path) -> None:
    made = make_checkpoint(folder, 4)
    made.rename(folder.parent / "big-storage")
    made.symlink_to(folder.parent / "big-storage")


def two_incomplete(folder: Path) -> None:
    for step in (4, 8):
        make_checkpoint(folder, step, without=["optimizer.pt"])


@pytest.mark.parametrize("left", [only_model, linked_away, two_incomplete])
def test_a_training_whose_checkpoints_cannot_be_resumed_from_is_not_started_from_scratch(
    tool: Tool, tmp_path: Path, left: Callable[[Path], None]
) -> None:
    out, ran = tmp_path / "out", tmp_path / "ran"
    left(out)
    run = ("run", "--run-id", left.__name__.replace("_", "-"), "--output-dir", out)
    command = program(f"pathlib.Path({str(ran)!r}).touch()")

    refused = tool(*run, "--", *command)
    offline = tool(*run, "--", *command, WANDB_MODE="offline")

    for done in (refused, offline):
        assert done.returncode == 5, done.stderr
        assert "cannot be resumed from, nor any other checkpoint of run" in refusal(done)
        assert "--allow-restart" in done.stderr
    assert not ran.exists()
    tool(*run, "--allow-restart", "--", *command)
    assert ran.exists()


def test_versions_of_the_model_alone_are_no_reason_to_start_from_scratch_on_another_machine(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    only_model(tmp_path / "out")
    assert tool.watch_once(tmp_path / "out", "model-alone").returncode == 0
    assert [step for step, _ in kept(server, "model-alone")] == [4]

    done = tool("run", "--run-id", "model-alone", "--output-dir", tmp_path / "new", "--", "true")

    assert done.returncode == 5, done.stderr
    assert "checkpoint-model-alone:v0 cannot be resumed from" in refusal(done)


def test_what_is_left_of_a_training_that_was_killed_in_its_first_save_is(tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_checkpoint(out, 4, without=["trainer_state.json"])

    done = tool("run", "--run-id", "first-save", "--output-dir", out, "--", *program("print('trains')"))

    assert "starting from scratch" in done.stderr
    assert "trains" in done.stdout


def test_a_preempted_training_that_saves_only_its_model_is_not_told_to_start_again(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    save = f"make_checkpoint(pathlib.Path(sys.argv[1]), 4, without={ONLY_MODEL!r})"
    notice = "os.kill(os.getppid(), signal.SIGTERM); signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(60)"
    command: list[str | Path] = [*program("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))", save, notice), out]

    done = tool("run", "--run-id", "model-only", "--output-dir", out, "--quiet-period", "0.2", "--", *command)

    assert done.returncode == 5, done.stderr
    assert "preempted at step 4, and checkpoint-4 is durable but not exactly resumable" in refusal(done)
    assert [step for step, _ in kept(server, "model-only")] == [4]


def test_a_folder_that_a_download_made_belongs_to_its_run(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    for run_id, step in (("run-a", 9), ("run-b", 3)):
        make_checkpoint(tmp_path / run_id, step, content=run_id)
        assert tool.watch_once(tmp_path / run_id, run_id).returncode == 0
    folder = tmp_path / "downloads"
    assert tool.pulled("run-a", folder)

    resumed = tool("resume", "run-b", "--output-dir", folder, "--download-only")
    ran = tool("run", "--run-id", "run-b", "--output-dir", folder, "--", "true")

    for done in (resumed, ran):
        assert done.returncode == 2, done.stderr
        assert "are of run run-a, not of run-b" in refusal(done)
    assert [step for step, _ in kept(server, "run-b")] == [3]


def test_torn_first_saves_of_several_attempts_do_not_add_up(tool: Tool, tmp_path: Path) -> None:
    out, run = tmp_path / "out", ("run", "--run-id", "torn-thrice", "--output-dir", tmp_path / "out", "--")
    for step in (5, 9, 7):
        torn = f"make_checkpoint(pathlib.Path(sys.argv[1]), {step}, without=['trainer_state.json']); sys.exit(3)"
        done = tool(*run, *program(torn), out)
        assert done.returncode == 3, done.stderr

    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-7"]
    assert len(list((out / ".ckptsync" / "torn").iterdir())) == 2


def test_a_download_of_a_version_by_choice_is_where_the_training_goes_on(tool: Tool, tmp_path: Path) -> None:
    for step in (4, 8):
        make_checkpoint(tmp_path / "out", step, content="chosen")
    assert tool.watch_once(tmp_path / "out", "chosen", "--backlog", "all").returncode == 0
    folder = tmp_path / "new"
    assert tool("resume", "chosen:step-4", "--output-dir", folder, "--download-only").returncode == 0

    done = tool("run", "--run-id", "chosen", "--output-dir", folder, "--no-hook", "--", "true")

    assert "resuming from local checkpoint-4" in done.stderr, done.stderr


def test_a_training_that_finished_in_one_store_is_not_finished_in_another(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make_checkpoint(out, 4, max_steps=8)
    save = "make_checkpoint(pathlib.Path(sys.argv[1]), 8, max_steps=8); print('trained')"
    line: tuple[str | Path, ...] = (
        "run",
        "--run-id",
        "two-ends",
        "--output-dir",
        out,
        "--no-hook",
        "--quiet-period",
        "0.2",
        "--",
        *program(save),
        out,
    )
    assert tool(*line).returncode == 0
    assert "finished" in tool(*line).stderr
    with ServerProcess(tmp_path / "other") as other:
        done = Tool(tmp_path / "home-there", other)(*line)

        assert done.returncode == 0, done.stderr
        assert [step for step, _ in kept(other, "two-ends")][-1] == 8
