"""The training's command, its environment, and signals to all of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.errors import UsageError
from ckptsync.job.launch import Training, environment, fill

RUN = Run("abc", "p", "me")
CONNECTION = Connection("http://localhost:1", "k" * 40)

GRANDCHILD = """
import os, signal, sys, time
from pathlib import Path

def saved(number, frame):
    Path(sys.argv[1] + ".got").write_text(str(number))
    os._exit(0)

signal.signal(signal.SIGTERM, saved)
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""

DIES = "import os; os.kill(os.getpid(), 9)"

LAUNCHER = """
import subprocess, sys
sys.exit(subprocess.call([sys.executable, "-c", sys.argv[1], sys.argv[2]]))
"""


def environ(**changes: object) -> dict[str, str]:
    arguments: dict[str, object] = {"checkpoint": Path("/out/checkpoint-5"), "exists": True, "base": {"PATH": "/bin"}}
    return environment(RUN, CONNECTION, Path("/out"), **(arguments | changes))  # type: ignore[arg-type]


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)
    return path.read_text()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_placeholder_becomes_the_path_wherever_it_stands() -> None:
    command = ["python", "train.py", "--resume_from_checkpoint={checkpoint}", "{checkpoint}"]

    assert fill(command, Path("/o/checkpoint-5"))[2:] == ["--resume_from_checkpoint=/o/checkpoint-5", "/o/checkpoint-5"]


def test_a_placeholder_with_nothing_to_resume_from_is_told() -> None:
    with pytest.raises(UsageError, match="nothing to resume from"):
        fill(["python", "{checkpoint}"], None)

    assert fill(["python", "train.py"], None) == ["python", "train.py"]


def test_the_training_is_told_which_run_it_is_and_nothing_of_our_own_process() -> None:
    base = {"PATH": "/bin", "WANDB_SERVICE": "3-123-unix", "CKPTSYNC_RESUME_FROM": "/stale", "WANDB_LOG_MODEL": "checkpoint"}

    found = environ(base=base)

    assert "WANDB_SERVICE" not in found
    assert (found["WANDB_RUN_ID"], found["WANDB_RESUME"], found["WANDB_PROJECT"]) == ("abc", "must", "p")
    assert (found["WANDB_ENTITY"], found["WANDB_LOG_MODEL"], found["PATH"]) == ("me", "false", "/bin")
    assert (found["WANDB_BASE_URL"], found["WANDB_API_KEY"]) == ("http://localhost:1", "k" * 40)
    assert found["CKPTSYNC_RESUME_FROM"] == "/out/checkpoint-5"


def test_a_run_that_is_not_on_the_server_yet_may_be_made() -> None:
    assert environ(exists=False)["WANDB_RESUME"] == "allow"


def test_the_hook_comes_first_on_the_path_and_keeps_what_was_there() -> None:
    path = environ(base={"PYTHONPATH": "/mine"})["PYTHONPATH"].split(os.pathsep)

    assert path[1:] == ["/mine"]
    assert (Path(path[0]) / "sitecustomize.py").is_file()


def test_without_the_hook_nothing_is_handed_over() -> None:
    found = environ(hook=False)

    assert "PYTHONPATH" not in found
    assert "CKPTSYNC_RESUME_FROM" not in found


def test_a_stale_checkpoint_of_an_outer_process_is_not_inherited_by_a_fresh_start() -> None:
    assert "CKPTSYNC_RESUME_FROM" not in environ(checkpoint=None, base={"CKPTSYNC_RESUME_FROM": "/stale"})


@pytest.mark.parametrize(("code", "expected"), [("pass", 0), ("raise SystemExit(7)", 7), (DIES, 137)])
def test_the_exit_code_is_what_a_shell_would_say(code: str, expected: int) -> None:
    woken = threading.Event()

    training = Training([sys.executable, "-c", code], os.environ)

    assert training.wait(woken) == expected
    assert training.ended()
    assert woken.is_set()


def test_a_signal_reaches_the_trainer_behind_a_launcher_that_does_not_pass_it_on(tmp_path: Path) -> None:
    started = tmp_path / "started"
    training = Training([sys.executable, "-c", LAUNCHER, GRANDCHILD, str(started)], os.environ)
    pid = int(wait_for(started))

    training.signal(signal.SIGTERM)
    code = training.wait()

    assert code == 128 + signal.SIGTERM
    assert wait_for(tmp_path / "started.got") == str(int(signal.SIGTERM))
    deadline = time.monotonic() + 20
    while not gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_the_command_leaves_running_is_told_to_end_with_it(tmp_path: Path) -> None:
    started = tmp_path / "started"
    leave = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {GRANDCHILD!r}, {str(started)!r}])"
    leave += f"\nimport os, time\nwhile not os.path.exists({str(started)!r}): time.sleep(0.01)"

    code = Training([sys.executable, "-W", "ignore", "-c", leave], os.environ).wait()

    assert code == 0
    assert wait_for(tmp_path / "started.got") == str(int(signal.SIGTERM))


def test_a_signal_after_the_end_hits_nobody() -> None:
    training = Training([sys.executable, "-c", ""], os.environ)
    training.wait()

    training.signal(signal.SIGTERM)

    assert training.ended()


def test_a_signal_to_the_training_does_not_hit_us(tmp_path: Path) -> None:
    started = tmp_path / "started"
    training = Training([sys.executable, "-c", GRANDCHILD, str(started)], os.environ)
    wait_for(started)

    assert os.getpgid(training.pid) == training.pid != os.getpgrp()
    training.signal(signal.SIGKILL)
    assert training.wait() == 128 + signal.SIGKILL


def test_a_command_or_folder_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("no program")
    (tmp_path / "script").chmod(0o755)

    for command, cwd in (
        (["no-such-program-anywhere"], None),
        ([str(tmp_path)], None),
        ([str(tmp_path / "script")], None),
        ([sys.executable, "-c", ""], tmp_path / "missing"),
    ):
        with pytest.raises(UsageError) as raised:
            Training(command, os.environ, cwd=cwd)

        assert raised.value.exit_code == 2
        assert "\n" not in str(raised.value)
