"""The training's command line and environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.errors import UsageError
from ckptsync.job.launch import environment, fill
from ckptsync.trainer import wandb_init

RUN = Run("abc", "p", "me")
CONNECTION = Connection("http://localhost:1", "k" * 40)


def environ(**changes: object) -> dict[str, str]:
    arguments: dict[str, object] = {"checkpoint": Path("/out/checkpoint-5"), "exists": True, "base": {"PATH": "/bin"}}
    return environment(RUN, CONNECTION, Path("/out"), **(arguments | changes))  # type: ignore[arg-type]


def test_the_placeholder_becomes_the_path_wherever_it_stands() -> None:
    command = ["python", "train.py", "--resume_from_checkpoint={checkpoint}", "{checkpoint}"]

    assert fill(command, Path("/o/checkpoint-5"))[2:] == ["--resume_from_checkpoint=/o/checkpoint-5", "/o/checkpoint-5"]


def test_a_placeholder_with_nothing_to_resume_from_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="nothing to resume from"):
        fill(["python", "{checkpoint}"], None)

    assert fill(["python", "train.py"], None) == ["python", "train.py"]


def test_the_environment_names_the_run_and_nothing_of_our_own_process() -> None:
    base = {"PATH": "/bin", "WANDB_SERVICE": "3-123-unix", "CKPTSYNC_RESUME_FROM": "/stale", "WANDB_LOG_MODEL": "checkpoint"}

    found = environ(base=base)

    assert "WANDB_SERVICE" not in found
    assert (found["WANDB_RUN_ID"], found["WANDB_RESUME"], found["WANDB_PROJECT"]) == ("abc", "must", "p")
    assert (found["WANDB_ENTITY"], found["WANDB_LOG_MODEL"], found["PATH"]) == ("me", "false", "/bin")
    assert (found["WANDB_BASE_URL"], found["WANDB_API_KEY"]) == ("http://localhost:1", "k" * 40)
    assert found["CKPTSYNC_RESUME_FROM"] == "/out/checkpoint-5"


def test_a_run_that_is_not_on_the_server_yet_may_be_created() -> None:
    assert environ(exists=False)["WANDB_RESUME"] == "allow"


def test_what_the_user_set_is_passed_on_for_the_hook_to_give_back() -> None:
    base = {"WANDB_RUN_ID": "mine", "WANDB_PROJECT": "my-project"}

    found = environ(base=base)

    assert (found["WANDB_RUN_ID"], found["WANDB_PROJECT"]) == ("abc", "p")
    assert wandb_init.users_own(found) == {**base, "WANDB_RESUME": None}
    assert wandb_init.users_own(environ(base={})) == {"WANDB_RUN_ID": None, "WANDB_RESUME": None}


def test_what_an_outer_ckptsync_set_is_not_taken_for_the_users_own() -> None:
    outer = environ(base={"WANDB_RUN_ID": "mine"})

    inner = environment(Run("inner", "q"), CONNECTION, Path("/in"), checkpoint=None, exists=False, base=outer)

    assert wandb_init.users_own(inner).items() >= {"WANDB_RUN_ID": "mine", "WANDB_RESUME": None}.items()


def test_the_hook_comes_first_on_the_path_and_keeps_what_was_there() -> None:
    path = environ(base={"PYTHONPATH": "/mine"})["PYTHONPATH"].split(os.pathsep)

    assert path[1:] == ["/mine"]
    assert (Path(path[0]) / "sitecustomize.py").is_file()


def test_without_the_hook_no_checkpoint_is_passed() -> None:
    found = environ(hook=False)

    assert "PYTHONPATH" not in found
    assert "CKPTSYNC_RESUME_FROM" not in found


def test_a_stale_checkpoint_of_an_outer_process_is_not_inherited_by_a_fresh_start() -> None:
    assert "CKPTSYNC_RESUME_FROM" not in environ(checkpoint=None, base={"CKPTSYNC_RESUME_FROM": "/stale"})
