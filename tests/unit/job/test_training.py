"""A started training: its exit code, and signals to all of its processes."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from ckptsync.errors import UsageError
from ckptsync.job.training import StartedTraining

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


@pytest.mark.parametrize(("code", "expected"), [("pass", 0), ("raise SystemExit(7)", 7), (DIES, 137)])
def test_the_exit_code_is_what_a_shell_would_say(code: str, expected: int) -> None:
    woken = threading.Event()

    training = StartedTraining([sys.executable, "-c", code], os.environ)

    assert training.wait(woken) == expected
    assert training.ended()
    assert woken.is_set()


def test_a_signal_reaches_the_trainer_behind_a_launcher_that_does_not_forward_it(tmp_path: Path) -> None:
    started = tmp_path / "started"
    training = StartedTraining([sys.executable, "-c", LAUNCHER, GRANDCHILD, str(started)], os.environ)
    pid = int(wait_for(started))

    training.signal(signal.SIGTERM)
    code = training.wait()

    assert code == 128 + signal.SIGTERM
    assert wait_for(tmp_path / "started.got") == str(int(signal.SIGTERM))
    deadline = time.monotonic() + 20
    while not gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_that_outlive_the_command_are_named_and_get_sigterm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    started = tmp_path / "started"
    leave = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {GRANDCHILD!r}, {str(started)!r}])"
    leave += f"\nimport os, time\nwhile not os.path.exists({str(started)!r}): time.sleep(0.01)"

    code = StartedTraining([sys.executable, "-W", "ignore", "-c", leave], os.environ).wait()

    assert code == 0
    assert wait_for(tmp_path / "started.got") == str(int(signal.SIGTERM))
    assert re.search(r"ending what it left running \(pid \d+\)", caplog.text)


def test_a_signal_after_the_end_reaches_no_process() -> None:
    training = StartedTraining([sys.executable, "-c", ""], os.environ)
    training.wait()

    training.signal(signal.SIGTERM)

    assert training.ended()


def test_a_signal_to_the_training_does_not_reach_this_process(tmp_path: Path) -> None:
    started = tmp_path / "started"
    training = StartedTraining([sys.executable, "-c", GRANDCHILD, str(started)], os.environ)
    wait_for(started)

    assert os.getpgid(training.pid) == training.pid != os.getpgrp()
    training.signal(signal.SIGKILL)
    assert training.wait() == 128 + signal.SIGKILL


def test_a_missing_command_or_folder_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("no program")
    (tmp_path / "script").chmod(0o755)

    for command, cwd in (
        (["no-such-program-anywhere"], None),
        ([str(tmp_path)], None),
        ([str(tmp_path / "script")], None),
        ([sys.executable, "-c", ""], tmp_path / "missing"),
    ):
        with pytest.raises(UsageError) as raised:
            StartedTraining(command, os.environ, cwd=cwd)

        assert raised.value.exit_code == 2
        assert "\n" not in str(raised.value)
