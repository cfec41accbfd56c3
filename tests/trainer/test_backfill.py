"""The history of a W&B run through kills and preemptions: the real wandb client against the local server."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.job import launch
from ckptsync.server.local import LocalServer, local_server
from tests.trainer.trainings import Training, environment, wait_for

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


OWN_ROWS = """
import sys
import wandb
from ckptsync.trainer import tiny
from transformers import TrainerCallback

class Own(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        wandb.log({"own": state.global_step}, step=state.global_step)

class OutOfMemory(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step and args.auto_find_batch_size and not hasattr(sys, "raised"):
            sys.raised = True
            raise RuntimeError("CUDA out of memory.")

wandb.init()
trainer = tiny.build(tiny.parse(sys.argv[2:]))
trainer.args.auto_find_batch_size = sys.argv[1] == "auto"
trainer.add_callback(Own() if sys.argv[1] == "own" else OutOfMemory())
trainer.train()
"""


def own_program(folder: Path, kind: str) -> tuple[str | Path, ...]:
    """A program with a run of its own making, and TRAIN's options."""
    (folder / "program.py").write_text(OWN_ROWS)
    return (folder / "program.py", kind, *TRAIN[2:])


def own_rows(run: Any) -> Counter[int]:
    return Counter(int(row["own"]) for row in run.scan_history(keys=["own"]))


@pytest.mark.slow
def test_a_programs_own_rows_go_on_after_a_resume_and_no_others_join_them(
    training: Training, server: LocalServer, tmp_path: Path
) -> None:
    output, program = tmp_path / "out", own_program(tmp_path, "own")
    env = wandb_environment(server, tmp_path, "own")
    whole = (*program, output, "--report-to", "none")
    training.run(*whole, "--max-steps", "8", follow=output, env=env)

    training.run(*whole, resume=output / "checkpoint-8", follow=output, env=env)

    run = run_of(server, "own")
    assert own_rows(run) == Counter(range(1, 17))
    assert counted(run, "train/loss") == Counter()


@pytest.mark.slow
def test_rows_logged_again_do_not_push_the_programs_own_steps_ahead(
    training: Training, server: LocalServer, tmp_path: Path
) -> None:
    output, program = tmp_path / "out", own_program(tmp_path, "own")
    env = wandb_environment(server, tmp_path, "both")
    whole = (*program, output, "--eval-steps", "0")
    training.run(*whole, "--max-steps", "6", follow=output, env=env)
    training.run(*whole, "--crash-at", "10", code=-9, resume=output / "checkpoint-4", follow=output, env=env)

    training.run(*whole, resume=output / "checkpoint-8", follow=output, env=env)

    run = run_of(server, "both")
    assert own_rows(run) == Counter({1, 2, 3, 4, 5, 6, *range(9, 17)})
    assert counted(run, "train/loss") == Counter({1, 2, 3, 4, 5, 6, *range(8, 17)})


@pytest.mark.slow
def test_a_training_that_begins_again_with_smaller_batches_logs_rows_again_once(
    training: Training, server: LocalServer, tmp_path: Path
) -> None:
    output, program = tmp_path / "out", own_program(tmp_path, "auto")
    env = wandb_environment(server, tmp_path, "auto")
    training.run(*program, output, "--crash-at", "6", code=-9, follow=output, env=env)

    training.run(*program, output, resume=output / "checkpoint-4", follow=output, env=env)

    run = run_of(server, "auto")
    assert {step: count for step, count in counted(run, "train/loss").items() if step <= 4} == dict.fromkeys(range(1, 5), 1)
    assert counted(run, "ckptsync/preemptions") == Counter([4])


@pytest.mark.slow
def test_rows_of_another_trainer_in_the_same_run_do_not_pass_for_those_of_the_training(
    training: Training, server: LocalServer, tmp_path: Path
) -> None:
    output, env = tmp_path / "out", wandb_environment(server, tmp_path, "stages")
    training.run(*TRAIN, tmp_path / "stage-1", "--max-steps", "4", "--seed", "7", env=env)
    training.run(*TRAIN, output, "--crash-at", "6", code=-9, follow=output, env=env)

    _, said = training.run(*TRAIN, output, resume=output / "checkpoint-4", follow=output, env=env)

    assert "logged 5 rows again that the run's history lacked (steps 1 to 4)" in said
    assert counted(run_of(server, "stages"), "train/loss") == Counter([*range(1, 5), *range(1, 17)])


def asked_for(server: LocalServer, folder: Path, run_id: str, checkpoint: Path | None = None) -> dict[str, str]:
    """The environment that `run` gives to a training in that folder. The marker of a checkpoint names its run."""
    run, connection = Run(run_id, "tests"), Connection(server.url, server.api_key)
    base = environment(env={"WANDB_DIR": str(folder), "HOME": str(folder)})
    return launch.environment(run, connection, folder / "out", checkpoint=checkpoint, exists=False, attempt="1", base=base)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "own"])
def test_a_training_that_goes_on_against_another_server_has_its_whole_history_there(
    training: Training, server: LocalServer, tmp_path: Path, kind: str
) -> None:
    output, run_id = tmp_path / "out", f"moved-{kind}"
    whole = (*own_program(tmp_path, kind), output)
    with local_server(tmp_path / "first") as first:
        training.run(*whole, "--crash-at", "9", code=-9, env=asked_for(first, tmp_path, run_id))

    checkpoint = output / "checkpoint-8"
    _, said = training.run(*whole, "--max-steps", "12", env=asked_for(server, tmp_path, run_id, checkpoint))
    training.run(*whole, env=asked_for(server, tmp_path, run_id, output / "checkpoint-12"))

    run = run_of(server, run_id)
    assert "logged 10 rows again that the run's history lacked (steps 1 to 8)" in said
    assert counted(run, "train/loss") == Counter(range(1, 17))
    assert counted(run, "eval/loss") == Counter([4, 8, 12, 16])
    # At the end of train(), WandbCallback's own row takes the number of the program's next one.
    assert own_rows(run).keys() >= (set(range(9, 13)) if kind == "own" else set())


@pytest.mark.slow
def test_a_new_run_that_starts_from_the_checkpoint_of_another_one_gets_none_of_its_rows(
    training: Training, server: LocalServer, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    training.run(*TRAIN, output, "--crash-at", "6", code=-9, env=asked_for(server, tmp_path, "ancestor"))

    _, said = training.run(*TRAIN, output, env=asked_for(server, tmp_path, "descendant", output / "checkpoint-4"))

    assert "again" not in said
    assert counted(run_of(server, "descendant"), "train/loss") == Counter(range(5, 17))
