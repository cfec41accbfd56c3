"""Drills: the number of processes changes between two starts, or the output folder is copied or restored from a backup."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ckptsync.upload.spool import Spool
from tests.integration.conftest import Tool, kept, training
from tests.server_process import ServerProcess

SAVER = Path(__file__).parents[1] / "preemption/saver.py"


def line(run_id: str, output_dir: Path, command: list[str]) -> list[str | Path]:
    """The job script's line."""
    return ["run", "--run-id", run_id, "--output-dir", output_dir, "--backlog", "all", "--quiet-period", "0.2", "--", *command]


def started_at(output_dir: Path) -> list[int | None]:
    """The step that each start of the training resumed from, oldest first."""
    attempts = json.loads((output_dir / ".ckptsync/run.json").read_text())["attempts"]
    return [attempt["resumed_step"] for attempt in attempts]


def ranks(count: int, output_dir: Path, *, crash_at: int = 0) -> list[str]:
    """A real training in so many processes."""
    command = training(output_dir, steps=6, save=2, report_to="none", crash_at=crash_at)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    return [command[0], *launcher, *command[1:]]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_training_in_another_number_of_processes_goes_on_though_it_died_before_its_first_save(
    tool: Tool, server: ServerProcess, tmp_path: Path, before: int, after: int
) -> None:
    out, run_id = tmp_path / "out", f"world-{before}-{after}"

    killed = tool(*line(run_id, out, ranks(before, out, crash_at=4)), timeout=180)
    again = tool(*line(run_id, out, ranks(after, out, crash_at=3)), timeout=180)
    done = tool(*line(run_id, out, ranks(after, out)), timeout=180)

    assert 0 not in (killed.returncode, again.returncode)
    assert done.returncode == 0, done.stderr
    for start in (again, done):
        assert "resuming from local checkpoint-2, step 2" in start.stderr
    assert started_at(out) == [None, 2, 2]
    assert kept(server, run_id) == [(2, ["step-2"]), (4, ["step-4"]), (6, ["final", "latest", "step-6"])]
    assert not Spool(out).torn()


def saver(output_dir: Path, *, fail_at: int = 0) -> list[str]:
    """A training of 16 steps, saved at every fourth."""
    return [sys.executable, str(SAVER), str(output_dir), "--steps", "16", "--fail-at", str(fail_at)]


def copy(source: Path, target: Path, names: list[str], *options: str) -> None:
    """What a person does with cp, in this order."""
    target.mkdir()
    for name in names:
        subprocess.run(["cp", "-r", *options, source / name, target], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        [".ckptsync", "checkpoint-12", "checkpoint-8", "checkpoint-4"],
        ["checkpoint-8", "checkpoint-12", "checkpoint-4", ".ckptsync"],
        ["checkpoint-12", "checkpoint-4", "checkpoint-8"],
    ],
    ids=["cp -r, the newest first", "cp -r, in disorder", "rsync without times and state"],
)
def test_a_copied_folder_goes_on_from_its_highest_step_whatever_its_times_say(
    tool: Tool, server: ServerProcess, tmp_path: Path, names: list[str]
) -> None:
    out, copied, run_id = tmp_path / "out", tmp_path / "copied", f"copied-{names[0]}-{len(names)}"
    first = tool(*line(run_id, out, saver(out, fail_at=14)))
    assert first.returncode == 7, first.stderr
    copy(out, copied, names)
    shutil.rmtree(out)

    done = tool(*line(run_id, copied, saver(copied)))

    assert done.returncode == 0, done.stderr
    assert "resuming from local checkpoint-12, step 12" in done.stderr
    assert [step for step, _ in kept(server, run_id)] == [4, 8, 12, 16]
    assert "latest" in kept(server, run_id)[-1][1]
    assert not Spool(copied).torn()


@pytest.mark.slow
@pytest.mark.parametrize("options", [["-a"], []], ids=["with its times", "with the times of the copy"])
def test_a_restored_older_folder_gives_way_to_the_newer_version_in_the_store(
    tool: Tool, server: ServerProcess, tmp_path: Path, options: list[str]
) -> None:
    out, backup, run_id = tmp_path / "out", tmp_path / "backup", f"restored-{len(options)}"
    assert tool(*line(run_id, out, saver(out, fail_at=6))).returncode == 7
    copy(out, backup, [".ckptsync", "checkpoint-4"], "-a")
    assert tool(*line(run_id, out, saver(out, fail_at=14))).returncode == 7
    shutil.rmtree(out)
    copy(backup, out, [".ckptsync", "checkpoint-4"], *options)

    done = tool(*line(run_id, out, saver(out)))

    assert done.returncode == 0, done.stderr
    assert f"resuming from checkpoint-{run_id}:v2, step 12" in done.stderr
    assert [step for step, _ in kept(server, run_id)] == [4, 8, 12, 16]
    assert (out / "checkpoint-4").is_dir()
    assert not Spool(out).torn()
