"""Which W&B runs a program makes below ckptsync: its training is the run that was asked for, every other run is its own."""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.job import launch
from ckptsync.server.local import LocalServer, local_server
from ckptsync.trainer import RESUME_FROM, RUN_RESUME
from tests.trainer.trainings import Training, environment, wait_for

pytest.importorskip("starlette", reason="the local server is an extra")

PLAIN = re.compile("[^_].*")

PROGRAM = """
import os, subprocess, sys

EVALUATE = "import wandb; run = wandb.init(project='tests', name={name!r}); run.log(dict(accuracy=1)); run.finish()"

def evaluate(name):
    return subprocess.run([sys.executable, "-c", EVALUATE.format(name=name)], check=True)

from ckptsync.trainer import tiny
from transformers import TrainerCallback
import wandb

class Evaluate(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            evaluate("below")

def build(*options):
    trainer = tiny.build(tiny.parse(["--output-dir", sys.argv[1], "--max-steps", "4", "--save-steps", "4", *options]))
    trainer.add_callback(Evaluate())
    return trainer
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server of our own for these tests."""
    with local_server(tmp_path_factory.mktemp("server")) as one:
        yield one


def launched(server: LocalServer, folder: Path, run_id: str, **users: str) -> dict[str, str]:
    """The environment that `run` gives to a training in that folder, where the user has set these variables."""
    own = {"WANDB_DIR": str(folder), "HOME": str(folder), "WANDB_CONSOLE": "off", "WANDB_SILENT": "true", **users}
    base = environment(env=own)
    connection = Connection(server.url, server.api_key)
    return launch.environment(Run(run_id, "tests"), connection, folder / "out", checkpoint=None, exists=False, base=base)


def program(folder: Path, text: str) -> Path:
    """A training program on disk, with what these need above it."""
    file = folder / "program.py"
    file.write_text(PROGRAM + textwrap.dedent(text))
    return file


def runs(server: LocalServer) -> dict[str, Any]:
    """Every run of the project by its id, with its name and what it logged."""
    import wandb

    api = wandb.Api(overrides={"base_url": server.url}, api_key=server.api_key)
    return {run.id: (run.name, sorted(filter(PLAIN.fullmatch, run.summary.keys()))) for run in api.runs("tests")}


def steps(server: LocalServer, run_id: str) -> list[Any]:
    """The step that each row of a run names, None for a row that is no Trainer's."""
    import wandb

    api = wandb.Api(overrides={"base_url": server.url}, api_key=server.api_key)
    return [row.get("train/global_step") for row in api.run(f"tests/{run_id}").scan_history()]


@pytest.mark.slow
def test_runs_below_a_training_are_their_own_and_a_second_run_of_the_program_too(
    training: Training, server: LocalServer, tmp_path: Path
) -> None:
    file = program(
        tmp_path,
        """
        import multiprocessing
        evaluate("before")
        build().train()
        wandb.finish()
        child = multiprocessing.get_context("fork").Process(target=lambda: wandb.init(project="tests", name="forked").finish())
        child.start()
        child.join()
        wandb.init(project="tests", name="after").finish()
        """,
    )

    training.run(file, tmp_path / "out", env=launched(server, tmp_path, "guest"))

    found = runs(server)
    assert sorted(name for name, _ in found.values()) == ["after", "before", "below", "forked", found["guest"][0]]
    assert "train/loss" in found["guest"][1]
    assert "accuracy" not in found["guest"][1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", "sh", "accelerate", "torchrun", "importing"])
def test_the_programs_own_run_before_the_trainer_is_the_training_under_every_launcher(
    training: Training, server: LocalServer, tmp_path: Path, launcher: str
) -> None:
    file = program(
        tmp_path,
        """
        wandb.init(project="tests", group=sys.argv[2], reinit="default")
        if os.environ.get("RANK", "0") == "0":
            evaluate("before")
        build().train()
        """,
    )
    words = [str(file), str(tmp_path / "out"), launcher]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words]
    command = {
        "python": words,
        "sh": ["-c", f"import os; os.execvp('sh', ['sh', '-c', '{sys.executable} {' '.join(words)}; exit $?'])"],
        "accelerate": ["-m", "accelerate.commands.launch", "--cpu", *words],
        "torchrun": torchrun,
        "importing": ["-c", f"import sys, transformers.trainer, subprocess as s; s.check_call([sys.executable, *{torchrun!r}])"],
    }[launcher]

    training.run(*command, env=launched(server, tmp_path, f"own-{launcher}"))

    found = runs(server)[f"own-{launcher}"]
    assert "train/loss" in found[1]
    assert "accuracy" not in found[1]


@pytest.mark.slow
def test_a_training_that_a_launching_program_starts_is_the_run_though_it_imports_wandb(
    training: Training, server: LocalServer, tmp_path: Path
) -> None:
    file = program(tmp_path, "build().train()")
    start = f"import sys, wandb, subprocess as s; s.check_call([sys.executable, {str(file)!r}, *sys.argv[1:]])"

    training.run("-c", start, tmp_path / "out", env=launched(server, tmp_path, "nested"))

    assert "train/loss" in runs(server)["nested"][1]


def test_the_run_of_a_trainer_with_another_output_folder_is_its_own(
    training: Training, server: LocalServer, tmp_path: Path
) -> None:
    file = program(
        tmp_path,
        """
        reward = tiny.build(tiny.parse(["--output-dir", sys.argv[1] + "-reward", "--max-steps", "2"]))
        reward.train()
        print("reward", wandb.run.id)
        wandb.finish()
        watched = tiny.build(tiny.parse(["--output-dir", sys.argv[1], "--max-steps", "3"]))
        watched.train()
        print("watched", wandb.run.id)
        """,
    )

    out, _ = training.run(file, tmp_path / "out", env=launched(server, tmp_path, "second"))

    assert "watched second" in out
    assert "reward second" not in out
    assert steps(server, "second") == [1, 2, 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize("users", [{}, {"WANDB_RUN_ID": "search-named", "WANDB_RESUME": "must"}], ids=["", "named"])
def test_a_trial_before_the_training_is_a_run_of_its_own_and_hides_no_gap(
    training: Training, server: LocalServer, tmp_path: Path, users: dict[str, str]
) -> None:
    file = program(
        tmp_path,
        """
        search = build()
        search.remove_callback(Evaluate)
        search.args.save_strategy = "no"
        search.train(trial={"learning_rate": 1e-3})
        print("trial", wandb.run.id)
        wandb.finish()
        training = build("--save-steps", "2", *sys.argv[2:])
        training.remove_callback(Evaluate)
        training.train()
        """,
    )
    run_id = users.get("WANDB_RUN_ID", "search")
    env = launched(server, tmp_path, run_id, **users)
    first, _ = training.run(file, tmp_path / "out", "--crash-at", "3", code=-9, env=env)

    resumed = {**env, "WANDB_RESUME": "must", RUN_RESUME: "must", RESUME_FROM: str(tmp_path / "out/checkpoint-2")}
    again, said = training.run(file, tmp_path / "out", env=resumed)

    assert f"trial {run_id}" not in (first + again).splitlines()
    assert "logged 2 rows again that the run's history lacked (steps 1 to 2)" in said
    assert set(steps(server, run_id)) == {1, 2, 3, 4}


OWN_VARIABLES = """
names = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_PROJECT", "WANDB_ENTITY")
told = "import os; print([os.environ.get(name) for name in " + repr(names) + "])"
exec(told)
subprocess.run([sys.executable, "-c", told], check=True)
wandb.init(**eval(sys.argv[2]))
assert wandb.run.id == sys.argv[3], wandb.run.id
trainer = build(*sys.argv[4:])
trainer.remove_callback(Evaluate)
trainer.train()
exec(told)
print("in", wandb.run.project, wandb.run.resumed)
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["{}", "dict(id=os.environ['WANDB_RUN_ID'], resume='allow')"], ids=["", "by-id"])
def test_a_program_sees_the_variables_that_the_user_set_and_its_training_is_the_run_that_was_asked_for(
    training: Training, server: LocalServer, tmp_path: Path, arguments: str
) -> None:
    run_id = f"named-{len(arguments)}"
    users = {"WANDB_RUN_ID": run_id, "WANDB_RESUME": "never", "WANDB_PROJECT": "of-user", "WANDB_ENTITY": "local"}
    file = program(tmp_path, OWN_VARIABLES)
    env = launched(server, tmp_path, run_id, **users)
    words: tuple[str | Path, ...] = (file, tmp_path / "out", arguments, run_id, "--save-steps", "2")
    training.run(*words, "--crash-at", "3", code=-9, env=env)

    resumed = {**env, "WANDB_RESUME": "must", RUN_RESUME: "must", RESUME_FROM: str(tmp_path / "out/checkpoint-2")}
    out, _ = training.run(*words, env=resumed)

    seen = str([run_id, "never", "of-user", "local"])
    assert [line for line in out.splitlines() if line.startswith("[")] == [seen] * 3
    assert "in tests True" in out


@pytest.mark.slow
def test_a_subprocess_logs_to_the_run_that_the_user_named_for_it_as_without_ckptsync(
    training: Training, server: LocalServer, tmp_path: Path
) -> None:
    file = program(tmp_path, "one = build(); one.remove_callback(Evaluate); one.train(); wandb.finish(); evaluate('later')")
    env = launched(server, tmp_path, "asked-for", WANDB_RUN_ID="of-user", WANDB_RESUME="allow")

    training.run(file, tmp_path / "out", env=env)

    found = runs(server)
    assert "accuracy" in found["of-user"][1]
    assert "train/loss" not in found["of-user"][1]
    assert "train/loss" in found["asked-for"][1]


def test_a_training_below_a_program_with_an_active_run_has_a_run_of_its_own_and_continues_it(
    training: Training, server: LocalServer, tmp_path: Path
) -> None:
    file = program(tmp_path, "build(*sys.argv[2:]).train(resume_from_checkpoint=None)")
    start = """
        import subprocess, sys, wandb
        run = wandb.init(project="tests", name="pipeline")
        run.log({"stage": 1})
        subprocess.check_call([sys.executable, *sys.argv[1:]])
        run.log({"stage": 2})
    """
    words = ("-c", textwrap.dedent(start), file, tmp_path / "out")
    env = launched(server, tmp_path, "pipe")
    killed = training.start(*words, "--save-steps", "2", "--step-seconds", "0.5", env=env)
    wait_for(lambda: (tmp_path / "out/.ckptsync/complete/checkpoint-2").exists())
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()

    resumed = {**env, "WANDB_RESUME": "must", RUN_RESUME: "must", RESUME_FROM: str(tmp_path / "out/checkpoint-2")}
    _, said = training.run(*words, env=resumed)

    assert "a process above this training logs to run pipe: the training logs to run pipe-training" in said
    assert set(steps(server, "pipe-training")) == {1, 2, 3, 4}
    assert set(steps(server, "pipe")) == {None}
