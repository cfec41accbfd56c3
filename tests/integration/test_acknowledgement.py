"""A checkpoint that the hook was to hand over, in a training whose Python doesn't have the hook."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.integration.conftest import TRAINING, Tool, events, kept, program, refusal
from tests.server_process import ServerProcess

ROWS = (
    "import json",
    "def save(step, losses):",
    "    folder = make_checkpoint(pathlib.Path(sys.argv[1]), step)",
    "    path = folder / 'trainer_state.json'",
    "    rows = [{'step': at + 1, 'loss': loss} for at, loss in enumerate(losses)]",
    "    path.write_text(json.dumps(json.loads(path.read_text()) | {'log_history': rows}))",
)


def without_hook(*lines: str) -> list[str]:
    """The command of a program whose Python ignores PYTHONPATH."""
    python, *rest = program(*ROWS, *lines)
    return [python, "-I", *rest]


def saved(output_dir: Path, step: int, losses: list[float]) -> None:
    path = make_checkpoint(output_dir, step) / "trainer_state.json"
    rows = [{"step": at + 1, "loss": loss} for at, loss in enumerate(losses)]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"log_history": rows}))


def run(run_id: str, output_dir: Path, *options: str) -> list[str | Path]:
    return ["run", "--run-id", run_id, "--output-dir", output_dir, "--quiet-period", "0.2", *options, "--"]


def test_a_trainer_without_the_hook_that_saves_above_the_step_to_resume_from_has_started_over(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make_checkpoint(out, 3)
    python, *module = TRAINING
    trains = ["--max-steps", "600", "--save-steps", "4", "--logging-steps", "500", "--report-to", "none", "--step-seconds", "0.2"]

    done = tool(*run("isolated", out), python, "-I", *module, "--output-dir", out, *trains, timeout=120)

    assert done.returncode == 5, done.stderr
    assert "checkpoint-4 was saved by a training that did not get checkpoint-3 from the hook" in refusal(done)
    assert "--no-hook" in done.stderr
    assert [step for step, _ in kept(server, "isolated")] == [3]
    assert events(out, "restarted") == [("restarted", 4)]


def test_a_program_without_the_hook_that_ends_early_and_saved_nothing_is_warned_of(tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_checkpoint(out, 4, max_steps=8)

    done = tool(*run("nothing", out), *without_hook("print('trains')"), out)

    assert done.returncode == 0
    assert "no Python process of the training had the hook that was to hand over checkpoint-4" in done.stderr
    assert "{checkpoint}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("here", [True, False])
def test_a_program_without_the_hook_that_logs_the_same_rows_may_have_started_over_with_the_same_seed(
    tool: Tool, server: ServerProcess, tmp_path: Path, here: bool
) -> None:
    out, run_id = tmp_path / "out", f"own-resume-{here}"
    saved(out, 2, [0.5, 0.25])
    if not here:
        assert tool.watch_once(out, run_id).returncode == 0
        out = tmp_path / "elsewhere"

    done = tool(*run(run_id, out), *without_hook("save(4, [0.5, 0.25, 0.2, 0.1])"), out)

    assert done.returncode == 5, done.stderr
    assert "did not get checkpoint-2 from the hook" in done.stderr
    assert [step for step, _ in kept(server, run_id)] == [2]
    again = tool(*run(run_id, out, "--no-hook"), *without_hook("save(6, [0.5, 0.25, 0.2, 0.1])"), out)
    assert again.returncode == 0, again.stderr
    assert [step for step, _ in kept(server, run_id)] == [2, 6]


@pytest.mark.slow
def test_a_program_without_the_hook_whose_rows_differ_has_started_over_on_another_machine_too(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    saved(tmp_path / "out", 2, [0.5, 0.25])
    assert tool.watch_once(tmp_path / "out", "other-rows").returncode == 0
    out = tmp_path / "elsewhere"

    done = tool(*run("other-rows", out), *without_hook("save(4, [0.5, 0.26, 0.2, 0.1])", "time.sleep(60)"), out)

    assert done.returncode == 5, done.stderr
    assert [step for step, _ in kept(server, "other-rows")] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--no-hook",), ("{checkpoint}",)])
def test_a_program_that_gets_its_checkpoint_in_another_way_needs_no_hook(
    tool: Tool, server: ServerProcess, tmp_path: Path, words: tuple[str, ...]
) -> None:
    out, run_id = tmp_path / "out", f"own-way-{words[0].strip('-{}')}"
    make_checkpoint(out, 3)
    options, arguments = (words, ()) if words[0].startswith("-") else ((), words)

    done = tool(*run(run_id, out, *options), *without_hook("make_checkpoint(pathlib.Path(sys.argv[1]), 4)"), out, *arguments)

    assert done.returncode == 0, done.stderr
    assert [step for step, _ in kept(server, run_id)][-1] == 4


def test_a_program_with_the_hook_and_without_a_trainer_may_save_what_it_likes(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make_checkpoint(out, 3)

    done = tool(*run("no-trainer", out), *program("make_checkpoint(pathlib.Path(sys.argv[1]), 4)"), out)

    assert done.returncode == 0, done.stderr
    assert [step for step, _ in kept(server, "no-trainer")][-1] == 4
