"""The history of a W&B run through kills and preemptions: the real wandb client against the local server."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptsync.server.local import LocalServer, local_server
from tests.trainer.trainings import Training, wait_for

pytest.importorskip("starlette", reason="the local server is an extra")

TRAIN = ("-m", "ckptsync.trainer.tiny", "--max-steps", "16", "--save-steps", "4", "--eval-steps", "4", "--output-dir")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server of our own for these tests."""
    with local_server(tmp_path_factory.mktemp("server")) as one:
        yield one


def wandb_environment(server: LocalServer, folder: Path, run_id: str, *, resume: str = "allow") -> dict[str, str]:
    """What the launcher sets for a training that reports to the server."""
    return {
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": server.api_key,
        "WANDB_PROJECT": "tests",
        "WANDB_RUN_ID": run_id,
        "WANDB_RESUME": resume,
        "WANDB_DIR": str(folder),
        "HOME": str(folder),
    }


def run_of(server: LocalServer, run_id: str) -> Any:
    """The run as the public API shows it."""
    import wandb

    return wandb.Api(overrides={"base_url": server.url}, api_key=server.api_key).run(f"tests/{run_id}")


def counted(run: Any, key: str) -> Counter[int]:
    """How often each global step has a row with that key."""
    return Counter(int(row["train/global_step"]) for row in run.scan_history(keys=["train/global_step", key]))


@pytest.mark.slow
def test_a_killed_client_leaves_no_gap_and_a_preempted_one_doubles_nothing(
    training: Training, server: LocalServer, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    training.run(*TRAIN, output, "--crash-at", "6", code=-9, follow=output, env=wandb_environment(server, tmp_path, "gap"))
    lost = counted(run_of(server, "gap"), "train/loss")
    must = wandb_environment(server, tmp_path, "gap", resume="must")

    process = training.start(*TRAIN, output, "--step-seconds", "0.3", resume=output / "checkpoint-4", follow=output, env=must)
    wait_for((output / ".ckptsync/complete/checkpoint-8").exists)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    last = max(int(folder.name.split("-")[1]) for folder in output.glob("checkpoint-*"))
    preempted = run_of(server, "gap")
    seen, state = counted(preempted, "train/loss"), preempted.state
    _, said_later = training.run(*TRAIN, output, resume=output / f"checkpoint-{last}", follow=output, env=must)

    assert sum(lost.values()) == 0
    assert "logged 5 rows again that the run's history lacked (steps 1 to 4)" in said
    assert seen == Counter(range(1, last + 1))
    assert state != "finished"
    assert "again" not in said_later
    run = run_of(server, "gap")
    assert counted(run, "train/loss") == Counter(range(1, 17))
    assert counted(run, "eval/loss") == Counter([4, 8, 12, 16])
    assert counted(run, "ckptsync/preemptions") == Counter([4, last])
    assert (run.summary["ckptsync/preemptions"], run.summary["ckptsync/resumed_from_step"]) == (2, last)
    assert run.state == "finished"


@pytest.mark.slow
def test_an_offline_run_does_not_keep_a_training_from_going_on(training: Training, server: LocalServer, tmp_path: Path) -> None:
    output = tmp_path / "out"
    training.run(*TRAIN, output, "--crash-at", "6", code=-9, follow=output, env=wandb_environment(server, tmp_path, "off"))

    env = wandb_environment(server, tmp_path, "off") | {"WANDB_MODE": "offline"}

    _, said = training.run(*TRAIN, output, resume=output / "checkpoint-4", follow=output, env=env)

    assert "Error" not in said
    assert (output / "model.safetensors").exists()
