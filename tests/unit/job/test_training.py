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


class Impatient(StartedTraining):
    """One that gives what its command leaves running hardly any time to begin to train."""

    STARTUP = PREPARATION = 0.3


def leaving(left: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """A command that starts this program in a session of its own, once it runs, and exits with 0; and its environment."""
    started = folder / "left"
    start = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {left!r}, {str(started)!r}], start_new_session=True)"
    )
    start += f"\nimport os, time\nwhile not os.path.exists({str(started)!r}): time.sleep(0.01)"
    environ = {**os.environ, "CKPTSYNC_ATTEMPT": os.urandom(4).hex(), "CKPTSYNC_OUTPUT_DIR": str(folder)}
    return [sys.executable, "-W", "ignore", "-c", start], environ


RUNS = "import pathlib, os, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep({})"

LOADS = """
import mmap, pathlib, sys
library = pathlib.Path(sys.argv[1] + "-libs/libtorch_cpu.so")
library.parent.mkdir()
library.write_bytes(bytes(4096))
with library.open("r+b") as file:
    held = mmap.mmap(file.fileno(), 4096)
"""


def test_what_the_command_leaves_running_is_followed_while_it_may_still_begin_to_train(tmp_path: Path) -> None:
    command, environ = leaving(RUNS.format(1), tmp_path)

    training = StartedTraining(command, environ)
    code = training.wait()

    assert (code, training.outlived) == (0, True)
    assert gone(int((tmp_path / "left").read_text()))


def test_what_never_begins_to_train_is_neither_waited_for_nor_ended(tmp_path: Path) -> None:
    command, environ = leaving(RUNS.format(60), tmp_path)

    Impatient(command, environ).wait()
    pid = int((tmp_path / "left").read_text())

    assert not gone(pid)
    os.kill(pid, signal.SIGKILL)


def test_a_process_that_has_loaded_torch_is_followed_until_it_ends_and_gets_the_signals(tmp_path: Path) -> None:
    command, environ = leaving(LOADS + RUNS.format(60), tmp_path)
    training = Impatient(command, environ)
    waiting = threading.Thread(target=training.wait)
    waiting.start()
    pid = int(wait_for(tmp_path / "left"))
    time.sleep(2 * Impatient.STARTUP)
    waited = waiting.is_alive() and training.outlived

    training.request_save()
    waiting.join(20)

    assert waited
    assert training.ended()
    assert gone(pid)


def test_what_a_command_that_failed_leaves_running_is_not_followed(tmp_path: Path) -> None:
    command, environ = leaving(RUNS.format(60), tmp_path)

    training = StartedTraining([*command[:-1], command[-1] + "\nsys.exit(3)"], environ)
    code = training.wait()

    assert (code, training.outlived) == (3, False)
    os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)


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
