"""The main job with real processes: a training is killed and resumed, and nothing shows that it ever was."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptsync import layouts
from ckptsync.rehearsal import comparison
from ckptsync.upload.spool import Spool
from tests.integration.conftest import Tool, descendants, kill_tree, training, wait_for
from tests.server_process import ServerProcess

STEPS, SAVE = 24, 6

HISTORY = """
import json, sys, wandb
run = wandb.Api().run(sys.argv[1])
rows = [row["train/global_step"] for row in run.scan_history(keys=["train/global_step", "train/loss"])]
print(json.dumps({"state": run.state, "steps": rows, "outputs": [each.name for each in run.logged_artifacts()]}))
"""


def _run(tool: Tool, name: str) -> dict[str, object]:
    done = subprocess.run(
        [*Tool.command()[:1], "-c", HISTORY, f"local/tests/{name}"],
        env=tool.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_training_that_was_killed_goes_on_bit_by_bit_in_an_empty_folder(
    tmp_path: Path, tool: Tool, server: ServerProcess, ended: Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]
) -> None:
    lost, new, whole = tmp_path / "lost", tmp_path / "new", tmp_path / "whole"
    lost.mkdir()
    trainer = ended(
        subprocess.Popen(
            training(lost, steps=STEPS, save=SAVE, seconds=0.5),
            env=tool.environment | {"WANDB_RUN_ID": "main-job"},
            cwd=tool.home,
        )
    )
    watcher = ended(
        tool.start("watch", lost, "--run-id", "main-job", "--backlog", "all", "--quiet-period", "0.5", log=tmp_path / "watch.log")
    )
    receipts = wait_for(lambda: (found := list(Spool(lost).receipts)) and len(found) >= 2 and found, what="two receipts")
    durable = max(receipt.step for receipt in receipts)
    kill_tree(trainer.pid)
    kill_tree(watcher.pid)
    shutil.rmtree(lost)

    resumed = tool("resume", "main-job", "--output-dir", new, "--", *training(new, steps=STEPS, save=SAVE), timeout=200)
    reference = subprocess.run(
        training(whole, steps=STEPS, save=SAVE),
        env=tool.environment | {"WANDB_RUN_ID": "never-killed"},
        cwd=tool.home,
        timeout=200,
    )

    assert resumed.returncode == 0, resumed.stderr
    assert reference.returncode == 0
    last = f"checkpoint-{STEPS}"
    unequal = [each for each in comparison.compare(new / last, whole / last) if not each.equal]
    assert not unequal
    assert (new / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert len(layouts.log_history(new / last)) >= STEPS
    run = _run(tool, "main-job")
    assert run["state"] == "finished"
    steps = [int(step) for step in run["steps"]]  # type: ignore[attr-defined]
    assert set(range(durable + 1, STEPS + 1)) <= set(steps)
    assert sorted(steps) == sorted(set(steps))
    versions = tool.json("list", "main-job")
    assert {row["step"] for row in versions} == set(range(SAVE, STEPS + 1, SAVE))
    assert versions[0]["step"] == STEPS
    assert {"latest", "final", f"step-{STEPS}"} <= set(versions[0]["aliases"])
    assert len(run["outputs"]) == len(versions)  # type: ignore[arg-type]


@pytest.mark.slow
def test_only_its_list_of_outputs_is_changed_in_the_live_run(tmp_path: Path, tool: Tool, server: ServerProcess) -> None:
    output_dir = tmp_path / "out"
    done = subprocess.run(training(output_dir), env=tool.environment | {"WANDB_RUN_ID": "untouched"}, cwd=tool.home, timeout=120)
    assert done.returncode == 0
    before = len(server.requests())

    uploaded = tool("watch", output_dir, "--run-id", "untouched", "--once")

    assert uploaded.returncode == 0, uploaded.stderr
    naming = [request for request in server.requests()[before:] if "untouched" in _names(request)]
    assert {request["operation"] for request in naming} == {"Run", "CreateArtifact"}
    # Three checkpoints and the final model.
    assert sum(request["operation"] == "CreateArtifact" for request in naming) == 4
    assert not [request for request in server.requests()[before:] if "/untouched/file_stream" in request["path"]]


def _names(request: dict[str, object]) -> set[object]:
    """Every string value in a request's variables, but for the group that the sync run says it belongs to."""
    found: set[object] = set()
    waiting: list[object] = [request.get("variables")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [each for key, each in value.items() if key != "groupName"]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            found.add(value)
    return found


@pytest.mark.slow
def test_no_byte_of_a_checkpoint_is_copied(
    tmp_path: Path, tool: Tool, ended: Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]
) -> None:
    output_dir, data, cache = tmp_path / "out", tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    cache.mkdir()
    subprocess.run(
        training(output_dir, steps=2, save=2, hidden=512, report_to="none"),
        env=tool.environment,
        cwd=tool.home,
        timeout=120,
        check=True,
    )
    size = sum(file.size for file in layouts.list_files(output_dir / "checkpoint-2"))
    watcher = ended(
        tool.start(
            "watch", output_dir, "--run-id", "no-copy", log=tmp_path / "log", WANDB_DATA_DIR=str(data), WANDB_CACHE_DIR=str(cache)
        )
    )

    wait_for(lambda: list(Spool(output_dir).receipts), what="the receipt")
    written = _written(watcher.pid)

    assert size > 30_000_000
    assert written < size / 10
    assert not list(data.iterdir())
    assert not list(cache.iterdir())


def _written(pid: int) -> int:
    """Bytes that a process and its living children caused to be written to disk (/proc/PID/io)."""
    total = 0
    for each in [pid, *descendants(pid)]:
        lines = Path(f"/proc/{each}/io").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))
    return total


@pytest.mark.slow
def test_a_watcher_killed_in_the_middle_of_an_upload_finishes_it_at_the_next_start_once(
    tmp_path: Path, tool: Tool, server: ServerProcess, ended: Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]
) -> None:
    output_dir = tmp_path / "out"
    subprocess.run(
        training(output_dir, steps=2, save=2, hidden=512, report_to="none"),
        env=tool.environment,
        cwd=tool.home,
        timeout=120,
        check=True,
    )
    server.faults([{"match": {"method": "PUT"}, "action": {"throttle": 2_000_000}}])
    watcher = ended(tool.start("watch", output_dir, "--run-id", "killed-watcher", log=tmp_path / "log"))
    wait_for(lambda: any(server.fault_hits()), what="a PUT under way")
    kill_tree(watcher.pid)
    server.faults([])
    assert [each.step for each in Spool(output_dir).pending()] == [2]

    done = tool("watch", output_dir, "--run-id", "killed-watcher", "--once")

    assert done.returncode == 0, done.stderr
    versions = tool.json("list", "killed-watcher")
    assert [(row["name"], row["version"], row["step"]) for row in versions] == [
        ("checkpoint-killed-watcher", "v0", 2),
        ("model-killed-watcher", "v0", 2),
    ]
    assert not Spool(output_dir).pending()
