"""When a training is finished: at its last step and with exit 0, whatever checkpoints are left of it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.integration.conftest import Tool, kept, make_run, program, publish
from tests.server_process import ServerProcess

PROGRAM = """
import os, shutil, signal, sys
from transformers import EarlyStoppingCallback, TrainerCallback
from ckptsync.trainer import tiny

out, kind = sys.argv[1:]
words = ["--output-dir", out, "--max-steps", "6", "--save-steps", "2", "--report-to", "none"]
if kind in ("best", "early"):
    trainer = tiny.build(tiny.parse([*words, "--eval-steps", "2", "--save-total-limit", "1"]))
    trainer.args.load_best_model_at_end = trainer.args.greater_is_better = True
    trainer.args.metric_for_best_model = "eval_loss"
else:
    trainer = tiny.build(tiny.parse(words))
if kind == "packs":
    class Pack(TrainerCallback):
        def on_save(self, args, state, control, **more):
            folder = f"{out}/checkpoint-{state.global_step}"
            shutil.make_archive(folder, "tar", folder)
            shutil.rmtree(folder)

    trainer.add_callback(Pack())
if kind == "early":
    trainer.add_callback(EarlyStoppingCallback(1))
trainer.train()
print("trained to", trainer.state.global_step)
if kind == "killed" and not os.path.exists(out + ".evaluated"):
    open(out + ".evaluated", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
trainer.save_model()
"""


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    """A program's command, but for its last word."""
    (tmp_path / "train.py").write_text(PROGRAM)
    out = str(tmp_path / "out")
    return ["run", "--run-id", tmp_path.name, "--output-dir", out, "--", sys.executable, str(tmp_path / "train.py"), out]


@pytest.mark.slow
def test_a_training_that_was_killed_after_its_last_step_does_what_follows_and_trains_no_further(
    tool: Tool, server: ServerProcess, tmp_path: Path, line: list[str]
) -> None:
    killed = tool(*line, "killed", timeout=170)
    before = (tmp_path / "out/checkpoint-6/model.safetensors").read_bytes()

    again, after = tool(*line, "killed", timeout=170), tool(*line, "killed")

    assert killed.returncode == 137, killed.stderr
    assert (again.returncode, after.returncode) == (0, 0), again.stderr
    assert "trained to 6" in again.stdout
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    assert kept(server, tmp_path.name)[-1][0] == 6
    assert (after.stdout, "the training is finished" in after.stderr) == ("", True)


@pytest.mark.slow
def test_what_follows_the_last_step_is_done_on_the_next_machine_where_the_first_did_not_come_to_it(
    tool: Tool, server: ServerProcess, tmp_path: Path, line: list[str]
) -> None:
    killed = tool(*line, "killed", timeout=170)
    shutil.rmtree(tmp_path / "out")

    again = tool(*line, "killed", timeout=170)
    shutil.rmtree(tmp_path / "out")
    after = tool(*line, "killed")

    assert (killed.returncode, again.returncode, after.returncode) == (137, 0, 0), again.stderr
    assert "trained to 6" in again.stdout
    assert (after.stdout, "the training is finished" in after.stderr) == ("", True)


@pytest.mark.slow
def test_a_training_whose_trainer_deleted_the_last_checkpoint_is_finished_and_its_models_are_durable(
    tool: Tool, server: ServerProcess, tmp_path: Path, line: list[str]
) -> None:
    done, after = tool(*line, "best", timeout=170), tool(*line, "best")

    assert (done.returncode, after.returncode) == (0, 0), done.stderr
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert "before its last step" not in done.stderr
    assert (after.stdout, "the training is finished" in after.stderr) == ("", True)
    assert tool.json("status", tmp_path / "out")["finished"]
    assert (6, ["final", "latest", "step-6"]) in kept(server, tmp_path.name)
    assert {row["kind"] for row in tool.json("list", tmp_path.name)} == {"checkpoint", "model"}


@pytest.mark.slow
def test_a_training_that_another_machine_went_on_with_is_not_finished_here(
    tool: Tool, server: ServerProcess, tmp_path: Path, line: list[str]
) -> None:
    done, after = tool(*line, "plain", timeout=170), tool(*line, "plain")
    make_run(server, tmp_path.name)
    further = make_checkpoint(tmp_path / "elsewhere", 8, content="further", max_steps=12)
    publish(server, further, tmp_path.name, ours={"attempt": 2})

    again = tool(*line[: line.index("--")], "--", *program("print(os.environ['CKPTSYNC_RESUME_FROM'])"))

    assert (done.returncode, after.stdout) == (0, ""), done.stderr
    assert again.stdout.strip() == str(tmp_path / "out/checkpoint-8"), again.stderr


@pytest.mark.slow
def test_a_training_whose_callback_packs_its_checkpoints_is_an_error_and_not_finished(tool: Tool, line: list[str]) -> None:
    done, again = tool(*line, "packs", timeout=170), tool(*line, "packs", timeout=170)

    assert (done.returncode, again.returncode) == (1, 1), done.stderr
    assert "checkpoint-6 is not durable: it was gone before it could be pinned" in done.stderr
    assert "trained to 6" in again.stdout


@pytest.mark.slow
def test_an_early_stop_whose_trainer_deletes_the_last_checkpoint_leaves_it_durable_and_goes_on_from_it(
    tool: Tool, server: ServerProcess, tmp_path: Path, line: list[str]
) -> None:
    done, again = tool(*line, "early", timeout=170), tool(*line, "early", timeout=170)

    assert (done.returncode, again.returncode) == (0, 0), done.stderr
    assert "trained to 4" in done.stdout
    assert "skipping checkpoint-4" not in done.stderr
    assert "the training ended by itself at step 4 of 6, and the same command goes on from there" in done.stderr
    assert [step for step, _ in kept(server, tmp_path.name)][:2] == [2, 4]
    assert "trained to 6" in again.stdout


@pytest.mark.slow
def test_a_finished_training_whose_program_deletes_its_folder_is_not_started_again(
    tool: Tool, server: ServerProcess, tmp_path: Path, line: list[str]
) -> None:
    at = line.index("--") + 1
    cleaning = [*line[:at], "sh", "-c", f'"$@" && sleep 6 && rm -rf {tmp_path / "out"}', "sh", *line[at:], "plain"]

    done, again = tool(*cleaning, timeout=170), tool(*cleaning, timeout=170)

    assert (done.returncode, again.returncode) == (0, 0), done.stderr + again.stderr
    assert ("trained to 6" in done.stdout, again.stdout) == (True, "")
    assert kept(server, tmp_path.name)[-1][0] == 6
