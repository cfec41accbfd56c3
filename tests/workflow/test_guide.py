"""Every row of the README's table of W&B's guide, against the server, with the real client and a real Trainer."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from ckptsync import layouts
from tests.integration.conftest import Tool
from tests.server_process import ServerProcess
from tests.workflow.conftest import Finished, names, program, python, run_on

OUTPUTS = """
import json, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
found = []
for folder in {folders!r}:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        found.append(model(**tokenizer(["good great bad", "awful fine"], return_tensors="pt", padding=True)).logits.tolist())
print(json.dumps(found))
"""


def outputs(tool: Tool, *folders: Path) -> list[Any]:
    """What the models in these folders say to the same sentences."""
    said = python(tool, OUTPUTS.replace("{folders!r}", repr([str(each) for each in folders]))).stdout
    found: list[Any] = json.loads(said.strip().splitlines()[-1])
    return found


def listed(finished: Finished) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = finished.tool.json("list", finished.run_id)
    return rows


def test_project_the_default_is_the_trainers_own(finished: Finished, server: ServerProcess) -> None:
    run = run_on(server, "whole", "huggingface")

    assert run["displayName"] == "bert-high-lr"
    assert listed(finished)


def test_logging_goes_on_as_without_ckptsync(finished: Finished, server: ServerProcess) -> None:
    summary = run_on(server, "whole", "huggingface")["summary"]

    assert summary["train/global_step"] == 12
    assert {"train/loss", "eval/loss", "train/epoch"} <= summary.keys()


def test_checkpoint_each_save_is_a_version_of_the_run_and_hf_uploads_none(finished: Finished, server: ServerProcess) -> None:
    rows = listed(finished)
    requests = [each for each in server.requests() if each["operation"] == "CreateArtifact"]

    assert sorted(row["step"] for row in rows if row["kind"] == "checkpoint") == [4, 8, 12]
    assert {row["name"] for row in rows} == {"checkpoint-whole", "model-whole"}
    assert names(run_on(server, "whole", "huggingface")) >= {f"{row['name']}:{row['version']}" for row in rows}
    assert not [each for each in requests if "global_step_" in json.dumps(each["variables"])]


def test_best_model_the_alias_is_on_the_checkpoint_that_the_trainer_calls_its_best(finished: Finished) -> None:
    state = layouts.read_state(finished.output_dir / "checkpoint-12")
    [best] = [row for row in listed(finished) if "best" in row["aliases"] and row["kind"] == "checkpoint"]

    assert f"checkpoint-{best['step']}" == Path(str(state.best_checkpoint)).name


@pytest.mark.slow
def test_load_the_final_model_is_the_best_one_and_says_the_same(finished: Finished, tmp_path: Path) -> None:
    state = layouts.read_state(finished.output_dir / "checkpoint-12")
    best = finished.output_dir / Path(str(state.best_checkpoint)).name

    done = finished.tool("pull", "whole", "--model", tmp_path / "model")
    whole = finished.tool("pull", "whole:best", tmp_path / "checkpoint")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "model")
    assert whole.returncode == 0, whole.stderr
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    } | {path.name for path in best.iterdir() if path.name == "special_tokens_map.json"}
    pulled, checkpoint, here = outputs(finished.tool, tmp_path / "model", tmp_path / "checkpoint", best)
    assert pulled == checkpoint == here


@pytest.mark.slow
def test_registry_the_final_model_is_promoted_with_an_alias(finished: Finished, server: ServerProcess) -> None:
    done = finished.tool.json("promote", "whole", "model/sentiment", "--model", "--alias", "staging")
    again = finished.tool("promote", "whole:best", "model/sentiment")

    assert done["name"] == "model-whole"
    assert done["linked_as"].startswith("local-org/wandb-registry-model/sentiment:")
    assert again.returncode == 0, again.stderr
    script = """
import wandb
found = wandb.Api().artifact("wandb-registry-model/sentiment:staging")
print(found.source_name, sorted(found.aliases))
"""
    assert python(finished.tool, script).stdout.strip() == "model-whole:v0 ['staging']"


def test_tables_predictions_stand_beside_labels_every_second_epoch(finished: Finished, server: ServerProcess) -> None:
    script = """
import json, wandb
run = wandb.Api().run("local/huggingface/whole")
files = [each for each in run.files() if each.name.startswith("media/table/ckptsync")]
for each in files:
    each.download(root=".", replace=True)
    print(json.dumps(json.load(open(each.name))))
"""
    tables = [json.loads(line) for line in python(finished.tool, script).stdout.splitlines() if line.startswith("{")]

    assert tables
    assert tables[0]["columns"] == ["epoch", "step", "input", "prediction", "label"]
    assert [len(table["data"]) for table in tables] == [5] * len(tables)
    assert {row[4] for table in tables for row in table["data"]} <= {"POSITIVE", "NEGATIVE"}
    assert {row[3] for table in tables for row in table["data"]} <= {"POSITIVE", "NEGATIVE"}
    assert {row[0] for table in tables for row in table["data"]} == {2.0}


def test_extra_variables_reach_the_training_as_they_are(tool: Tool, tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import os; print(os.environ['WANDB_WATCH'], os.environ['WANDB_TAGS'])"]

    done = tool("run", "--run-id", "through", "--output-dir", tmp_path / "out", "--", *words, WANDB_WATCH="all", WANDB_TAGS="a,b")

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["all", "a,b"]


@pytest.mark.slow
def test_end_only_the_final_model_is_uploaded(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    out = tmp_path / "out"

    done = tool(
        "run", "--run-id", "end", "--output-dir", out, "--", *program(out, "--steps", "8"), timeout=150, WANDB_LOG_MODEL="end"
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("only the final model is uploaded") == 1
    assert [(row["name"], row["step"], row["kind"]) for row in tool.json("list", "end")] == [("model-end", 8, "model")]
    pulled = tool("pull", "end", "--model", tmp_path / "model")
    assert pulled.returncode == 0, pulled.stderr
    one, other = outputs(tool, tmp_path / "model", out / "checkpoint-8")
    assert one == other


@pytest.mark.slow
def test_a_program_that_sets_wandb_log_model_itself_is_told_that_ckptsync_does_it(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = program(out, "--steps", "4", "--log-model", "checkpoint")

    done = tool("run", "--run-id", "twice", "--output-dir", out, "--", *words, timeout=150)

    assert done.returncode == 0, done.stderr
    assert "ckptsync uploads the checkpoints instead" in done.stderr
    assert {(row["name"], row["version"]) for row in tool.json("list", "twice")} == {
        ("checkpoint-twice", "v0"),
        ("model-twice", "v0"),
    }


@pytest.mark.slow
def test_own_init_the_same_run_goes_on_after_a_crash(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    out, new = tmp_path / "out", tmp_path / "new"
    words = ["--own-init", "--steps", "8"]
    crashed = tool(
        "run",
        "--run-id",
        "own",
        "--project",
        "sentiment",
        "--output-dir",
        out,
        "--quiet-period",
        "0.2",
        "--",
        *program(out, *words, "--crash-at", "6"),
        timeout=150,
    )

    resumed = tool("resume", "own", "--project", "sentiment", "--output-dir", new, "--", *program(new, *words), timeout=150)

    assert crashed.returncode == 137, crashed.stderr
    assert resumed.returncode == 0, resumed.stderr
    run = run_on(server, "own", "sentiment")
    assert run["group"] == "bert"
    assert run["displayName"] == "bert-high-lr"
    assert run["summary"]["train/global_step"] == 8
    assert run["summary"]["ckptsync/preemptions"] == 1
    assert layouts.read_state(new / "checkpoint-8").finished


@pytest.mark.slow
def test_what_hf_uploaded_itself_is_listed_pulled_and_resumed_from(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    out, new = tmp_path / "out", tmp_path / "new"
    words = program(out, "--steps", "4", "--run-name", "named")
    python(tool, f"import subprocess; subprocess.run({words!r}, check=True)", WANDB_LOG_MODEL="checkpoint", WANDB_RUN_ID="of-hf")

    rows = tool.json("list", "of-hf")
    pulled = tool("pull", "of-hf", tmp_path / "pulled")
    resumed = tool("resume", "of-hf", "--extend", "--output-dir", new, "--", *program(new, "--steps", "8"), timeout=150)

    assert {(row["name"], row["step"], row["kind"]) for row in rows} >= {("model-named", 4, "checkpoint")}
    assert pulled.returncode == 0, pulled.stderr
    assert layouts.inspect(tmp_path / "pulled", step=4, ordered=False).resumable
    assert resumed.returncode == 0, resumed.stderr
    assert layouts.read_state(new / "checkpoint-8").finished


RESUMED = """
import sys
from pathlib import Path
import wandb
import ckptsync
from tests.workflow.program import trainer
from transformers import AutoModelForSequenceClassification

with ckptsync.resumed_run("python", output_dir={out!r}, settings=wandb.Settings(console="off")) as (run, checkpoint_dir):
    assert run.resumed, "a new run"
    assert ckptsync.verify(checkpoint_dir).resumable
    AutoModelForSequenceClassification.from_pretrained(checkpoint_dir)
    training = trainer({out!r}, steps=8)
    training.train(resume_from_checkpoint=str(checkpoint_dir))
    print(checkpoint_dir.name, training.state.global_step)
"""


@pytest.mark.slow
def test_resume_in_python_goes_on_with_the_run_and_a_verified_checkpoint(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    out, new = tmp_path / "out", tmp_path / "new"
    words = program(out, "--steps", "8", "--crash-at", "6")
    crashed = tool("run", "--run-id", "python", "--output-dir", out, "--quiet-period", "0.2", "--", *words, timeout=150)
    assert crashed.returncode == 137, crashed.stderr

    done = python(tool, RESUMED.replace("{out!r}", repr(str(new))))

    assert done.stdout.split() == ["checkpoint-4", "8"]
    run = run_on(server, "python")
    assert run["summary"]["train/global_step"] == 8
    assert names(run, "inputArtifacts") == {"checkpoint-python:v0"}
    assert run["state"] == "finished"


@pytest.mark.slow
def test_best_model_is_not_forgotten_when_a_resume_goes_on_elsewhere(tool: Tool, server: ServerProcess, tmp_path: Path) -> None:
    out, new = tmp_path / "out", tmp_path / "new"
    words = ["--load-best", "--first-is-best", "--steps", "12"]
    watch = ["--quiet-period", "0.2", "--backlog", "all"]
    crashed = tool(
        "run", "--run-id", "best", "--output-dir", out, *watch, "--", *program(out, *words, "--crash-at", "10"), timeout=150
    )
    assert crashed.returncode == 137, crashed.stderr
    best = Path(str(layouts.read_state(out / "checkpoint-8").best_checkpoint)).name
    shutil.rmtree(out)

    resumed = tool("resume", "best", "--output-dir", new, *watch, "--", *program(new, *words), timeout=150)

    assert resumed.returncode == 0, resumed.stderr
    assert best == "checkpoint-4"
    assert (new / best / "trainer_state.json").is_file()
    assert Path(str(layouts.read_state(new / "checkpoint-12").best_checkpoint)).parent == new
    [model] = [row for row in tool.json("list", "best") if row["kind"] == "model"]
    assert f"checkpoint-{model['step']}" == Path(str(layouts.read_state(new / "checkpoint-12").best_checkpoint)).name
