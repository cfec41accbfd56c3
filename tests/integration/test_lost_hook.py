"""A training that loses what ckptsync put into its environment: it starts over, and that is found out at its first save."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.integration.conftest import Tool, kept, program, training
from tests.server_process import ServerProcess


def line(run_id: str, output_dir: Path, command: list[str]) -> list[str | Path]:
    """The job script's line."""
    return ["run", "--run-id", run_id, "--output-dir", output_dir, "--quiet-period", "0.2", "--", *command]


LOST = {
    "python -I": ["-I"],
    "PYTHONPATH=. python": ["env", "PYTHONPATH=."],
    "env -i": ["env", "-i", f"PATH={os.environ['PATH']}", "OMP_NUM_THREADS=1", "HF_HUB_OFFLINE=1"],
}
"""How a command loses what ckptsync put into its environment."""


def losing(how: str, command: list[str]) -> list[str]:
    """The command without the hook: options of Python, or a program before it."""
    words = LOST[how]
    return [*words, *command] if words[0] == "env" else [command[0], *words, *command[1:]]


@pytest.mark.parametrize("options", [["-I"], []], ids=["without", "with"])
def test_that_the_hook_does_not_reach_a_training_is_said_at_its_first_save(
    tool: Tool, tmp_path: Path, options: list[str]
) -> None:
    out = tmp_path / "out"
    python, *words = program(
        "save = lambda step: make_checkpoint(pathlib.Path(sys.argv[1]), step, max_steps=8)", "save(4)", "time.sleep(2)", "save(8)"
    )

    done = tool(*line(f"first-{len(options)}", out, [python, *options, *words, str(out)]))

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the hook does not reach this training") == len(options)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, server: ServerProcess) -> Path:
    """The output folder of a real training that died after its save of step 4."""
    folder = tmp_path_factory.mktemp("interrupted")
    command = training(folder / "out", steps=8, save=4, report_to="none", crash_at=5)
    died = Tool(folder / "home", server)(*line("lost-hook", folder / "out", command), timeout=170)
    assert died.returncode == 137, died.stderr
    assert [step for step, _ in kept(server, "lost-hook")] == [4]
    return folder / "out"


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("how", "save", "seed"),
    [("python -I", 100, 42), ("env -i", 100, 43), ("PYTHONPATH=. python", 100, 43), ("python -I", 2, 42)],
)
def test_a_training_that_lost_the_hook_and_started_over_ends_at_its_first_save_and_nothing_is_uploaded(
    tool: Tool, server: ServerProcess, tmp_path: Path, interrupted: Path, how: str, save: int, seed: int
) -> None:
    # With the same seed the same steps give the same losses here; another one stands for a machine on which they don't.
    out = Path(shutil.copytree(interrupted, tmp_path / "out"))
    command = training(out, steps=8, save=save, report_to="none", seed=seed)

    done = tool(*line("lost-hook", out, losing(how, command)), timeout=170)

    assert done.returncode == 5, done.stderr
    assert "started over; nothing of it is uploaded" in done.stderr
    assert "{checkpoint}" in done.stderr
    assert kept(server, "lost-hook") == [(4, ["latest", "step-4"])]
