"""The drill: the user's own command, in folders of the drill's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ckptsync.errors import UsageError
from ckptsync.rehearsal import comparison
from ckptsync.rehearsal.redirect import redirect
from tests.integration.conftest import Tool, training
from tests.preemption.conftest import Job

WEIGHTS = """
import sys
from safetensors.torch import load_file, save_file
tensors = load_file(sys.argv[1])
name = "transformer.wte.weight"
tensors[name].view(-1)[0] += 1e-4
save_file(tensors, sys.argv[1])
"""

RUNS = "import json, wandb; print(json.dumps([run.id for run in wandb.Api().runs('local/%s')]))"


@pytest.mark.parametrize(
    ("command", "redirected"),
    [
        (["t.py", "--output_dir", "runs/a"], ["t.py", "--output_dir", "/new"]),
        (["t.py", "--output-dir=runs/a/"], ["t.py", "--output-dir=/new/"]),
        (
            ["t.py", "--output_dir=runs/a", "--logging_dir", "runs/a/logs"],
            ["t.py", "--output_dir=/new", "--logging_dir", "/new/logs"],
        ),
        (["t.py", "--output_dir", "runs/a", "--data", "runs/ab"], ["t.py", "--output_dir", "/new", "--data", "runs/ab"]),
        (["t.py", "--out={output_dir}/x"], ["t.py", "--out=/new/x"]),
        (["t.py", "--output_dir", "/a", "--push_to_hub", "False"], ["t.py", "--output_dir", "/new", "--push_to_hub", "False"]),
    ],
)
def test_the_output_folder_is_replaced_wherever_it_stands(command: list[str], redirected: list[str]) -> None:
    assert redirect(command, Path("/new")) == redirected


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["axolotl", "train", "config.yml"], "has no --output_dir"),
        (["t.py", "--output_dir"], "has no --output_dir"),
        (["t.py", "--output_dir", "a", "--push_to_hub"], "pushes to the Hub"),
        (["t.py", "--output_dir", "a", "--push_to_hub=True"], "pushes to the Hub"),
    ],
)
def test_a_command_that_a_drill_could_not_keep_to_its_own_folder_is_refused(command: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why) as raised:
        redirect(command, Path("/new"))

    assert raised.value.hint


@pytest.mark.slow
def test_a_training_is_killed_and_resumed_and_nothing_of_the_users_is_touched(job: Job, tmp_path: Path) -> None:
    own = tmp_path / "own"
    project = job.tool.environment["WANDB_PROJECT"]

    done = job.tool("drill", "--", *training(own, steps=30, save=3, seconds=0.15), timeout=150, WANDB_RUN_ID="mine")

    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("          ")] == ["identical"] * 3 + [
        "state"
    ] + ["identical"]
    assert "resumes bit for bit" in done.stdout
    assert not own.exists()
    assert _runs(job.tool, project) == []


@pytest.mark.slow
def test_a_program_that_draws_from_a_generator_of_its_own_is_found_out(job: Job, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, torch\nfrom ckptsync.trainer import tiny\n"
        "options = tiny.parse(sys.argv[1:])\ntrainer = tiny.build(options)\n"
        "noise = torch.Generator().manual_seed(int.from_bytes(__import__('os').urandom(4)))\n"
        "collate = trainer.data_collator\n"
        "def noisy(features):\n    batch = collate(features)\n"
        "    flip = torch.rand(batch['input_ids'].shape, generator=noise) < 0.2\n"
        "    batch['input_ids'] = torch.where(flip, 0, batch['input_ids'])\n    return batch\n"
        "trainer.data_collator = noisy\ntrainer.train()\n"
    )
    command = [sys.executable, str(program), *training(tmp_path / "own", steps=30, save=3, seconds=0.15)[3:]]

    done = job.tool("drill", "--keep", tmp_path / "kept", "--", *command, timeout=170)

    assert done.returncode == 5, done.stdout + done.stderr
    assert "DIFFERENT   model.safetensors differs, at most by" in done.stdout
    assert "other data after step" in done.stdout
    assert (tmp_path / "kept/first.log").exists()


def test_a_program_without_an_output_folder_is_told_what_to_do(job: Job) -> None:
    done = job.tool("drill", "--", "axolotl", "train", "config.yml")

    assert done.returncode == 2
    assert "{output_dir}" in done.stderr


@pytest.mark.slow
def test_a_program_that_ends_too_early_is_told_and_leaves_no_run(job: Job, tmp_path: Path) -> None:
    done = job.tool("drill", "--", sys.executable, "-c", "raise SystemExit(3)", "--output_dir", "x")

    assert done.returncode == 1
    assert "a second durable checkpoint was not reached: the command ended with 3" in done.stderr
    assert _runs(job.tool, job.tool.environment["WANDB_PROJECT"]) == []


@pytest.mark.slow
def test_the_largest_difference_is_reported_with_its_place_and_a_cause(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = training(out, steps=4, save=2, report_to="none")
    subprocess.run(command, env=job.tool.environment, cwd=tmp_path, check=True, timeout=120)
    other = out.with_name("other")
    subprocess.run(["cp", "-r", out / "checkpoint-4", other], check=True)
    subprocess.run([sys.executable, "-c", WEIGHTS, other / "model.safetensors"], check=True)

    results = comparison.compare(out / "checkpoint-4", other)

    weights = results[0]
    assert not weights.equal
    assert "model.safetensors differs, at most by 0.0001" in weights.detail
    assert [each.equal for each in results[1:]] == [True] * 4
    assert any("--full_determinism" in cause for cause in comparison.causes(results, resumed=2))


def _runs(tool: Tool, project: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", RUNS % project], env=tool.environment, capture_output=True, text=True, timeout=60
    )
    found: list[str] = json.loads(done.stdout) if done.returncode == 0 else []
    return found
