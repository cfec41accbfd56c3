"""A command whose exit status says nothing of the training: it left that running, or a pipe hides how it ended."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ckptsync import processes, record
from tests.integration.conftest import Ended, Tool, events, kept, wait_for, wait_for_event
from tests.server_process import ServerProcess

PROGRAM = """
import os, pathlib, signal, subprocess, sys, time
from transformers import TrainerCallback
from ckptsync.trainer import tiny

out, kind, seconds = sys.argv[1:]
once = pathlib.Path(out + ".once")

class Ends(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if kind.startswith("killed") and state.global_step == 5 and not (kind == "killed-once" and once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if kind.startswith("raises") and state.global_step == 5:
            raise RuntimeError("injected")
        if kind == "stops" and state.global_step == 5:
            control.should_training_stop = True
    def on_save(self, args, state, control, **kwargs):
        if kind == "exits" and state.global_step == 4:
            os._exit(0)

trainer = tiny.build(tiny.parse([
    "--output-dir", out, "--max-steps", "8", "--save-steps", "4", "--report-to", "none", "--step-seconds", seconds
]))
trainer.add_callback(Ends())
if kind == "leaves a helper":
    subprocess.Popen(["sleep", "300"])
if kind == "leaves a Python helper":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
try:
    trainer.train()
except RuntimeError:
    if kind != "raises-caught":
        raise
print("trained to", trainer.state.global_step, flush=True)
"""

PARENT = """
import multiprocessing, runpy, sys

def child():
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")

if __name__ == "__main__":
    process = multiprocessing.get_context("{method}").Process(target=child)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


class Scene:
    """A job in a folder of its own."""

    def __init__(self, folder: Path, tool: Tool) -> None:
        (folder / "train.py").write_text(PROGRAM)
        self.out = folder / "out"
        self.run_id = f"hidden-{folder.name}"
        self.tool = tool

    def training(self, kind: str, *, seconds: float = 0.0) -> str:
        """The command of the training, for a shell."""
        return shlex.join([sys.executable, str(self.out.with_name("train.py")), str(self.out), kind, str(seconds)])

    def line(self, script: str, *options: str) -> list[str | Path]:
        """The job's command line."""
        words: list[str | Path] = ["--run-id", self.run_id, "--output-dir", self.out, "--quiet-period", "0.2", *options]
        return ["run", *words, "--", "bash", "-c", script]

    def __call__(self, script: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self.tool(*self.line(script, *options), timeout=170)


@pytest.fixture
def scene(tmp_path: Path, tool: Tool) -> Scene:
    return Scene(tmp_path, tool)


@pytest.mark.parametrize("leaves", ["exec setsid {}", "{} > /dev/null 2>&1 &"])
def test_a_training_that_its_command_leaves_running_is_followed_to_its_end(
    scene: Scene, server: ServerProcess, leaves: str
) -> None:
    done = scene(leaves.format(scene.training("plain", seconds=0.2)))

    assert done.returncode == 0, done.stderr
    assert "the command has exited with 0, but left pid" in done.stderr
    assert kept(server, scene.run_id) == [(4, ["step-4"]), (8, ["final", "latest", "step-8"])]
    # Nobody saw how it ended: what follows its last step may have failed.
    assert not record.read(scene.out).completed
    assert "the exit status of the training is not known" in done.stderr


def test_a_notice_reaches_a_training_that_left_its_command(
    scene: Scene, server: ServerProcess, tmp_path: Path, ended: Ended
) -> None:
    log = tmp_path / "log"
    process = ended(scene.tool.start(*scene.line(f"exec setsid {scene.training('plain', seconds=1)}"), log=log))
    wait_for_event(scene.out, "uploaded", 4)

    process.terminate()

    assert process.wait(60) == 75, log.read_text()
    assert "preempted" in kept(server, scene.run_id)[-1][1]
    assert events(scene.out, "preempted") == [("preempted", kept(server, scene.run_id)[-1][0])]


@pytest.mark.slow
def test_a_daemon_that_the_training_leaves_behind_keeps_no_job_alive(scene: Scene, tmp_path: Path, server: ServerProcess) -> None:
    pid = tmp_path / "pid"
    daemon = [sys.executable, "-c", f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(300)"]
    starts = f"setsid -f {shlex.join(daemon)} > /dev/null 2>&1 < /dev/null"

    done = scene(f"{starts}; exec setsid {scene.training('plain')}")
    left = int(pid.read_text())
    lives = processes.start_time(left) is not None
    os.kill(left, signal.SIGKILL)

    assert done.returncode == 0, done.stderr
    assert lives
    assert kept(server, scene.run_id)[-1] == (8, ["final", "latest", "step-8"])


@pytest.mark.slow
def test_a_launcher_that_left_its_command_may_start_the_training_again(scene: Scene, server: ServerProcess) -> None:
    launcher = "-m torch.distributed.run --standalone --nproc-per-node=1 --max-restarts=1"
    python, program = scene.training("killed-once", seconds=0.1).split(" ", 1)

    done = scene(f"exec setsid {python} {launcher} {program}")

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained to 8") == 1
    assert events(scene.out, "restart") == []
    assert kept(server, scene.run_id)[-1] == (8, ["final", "latest", "step-8"])


@pytest.mark.slow
@pytest.mark.parametrize("hides", ["exec setsid {}", "{} | cat"])
def test_a_training_that_is_killed_behind_its_command_s_exit_status_is_restarted(
    scene: Scene, server: ServerProcess, hides: str
) -> None:
    done = scene(hides.format(scene.training("killed-once", seconds=0.1)), "--max-restarts", "1")

    assert done.returncode == 0, done.stderr
    assert "the training was killed inside train() after its save of step 4; the exit status 0 is its command's" in done.stderr
    assert events(scene.out, "restart", "resumed") == [("restart", 4), ("resumed", 4)]
    assert kept(server, scene.run_id)[-1] == (8, ["final", "latest", "step-8"]), done.stderr


def test_a_training_that_is_killed_in_a_pipe_fails_with_1_and_the_way_out(scene: Scene, server: ServerProcess) -> None:
    done = scene(f"{scene.training('killed')} | cat", "--max-restarts", "0")

    assert done.returncode == 1, done.stderr
    assert "a pipe needs `set -o pipefail`" in done.stderr
    assert kept(server, scene.run_id) == [(4, ["latest", "step-4"])]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["leaves a helper", "leaves a Python helper"])
def test_a_helper_that_outlives_the_training_is_ended_at_once_and_the_training_is_finished(scene: Scene, kind: str) -> None:
    done = scene(scene.training(kind))
    again = scene(scene.training(kind))

    assert done.returncode == 0, done.stderr
    assert "ending what it left running" in done.stderr
    assert (again.returncode, again.stdout) == (0, ""), again.stderr
    assert "the training is finished" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_training_in_a_process_that_its_program_waits_for_is_finished(scene: Scene, method: str) -> None:
    parent = scene.out.with_name("parent.py")
    parent.write_text(PARENT.format(method=method))
    command = scene.training("plain").replace("train.py", f"parent.py {scene.out.with_name('train.py')}")

    done, again = scene(command), scene(command)

    assert done.returncode == 0, done.stderr
    assert "trained to 8" in done.stdout
    assert "is not known" not in done.stderr
    assert (again.returncode, again.stdout) == (0, ""), again.stderr


@pytest.mark.slow
def test_an_exception_is_a_failure_unless_the_program_catches_it(scene: Scene) -> None:
    left = scene(f"exec setsid {scene.training('raises', seconds=0.1)}", "--max-restarts", "0")
    caught = scene(f"{scene.training('raises-caught')} | cat", "--max-restarts", "0")
    piped = scene(f"{scene.training('raises')} | cat", "--max-restarts", "0")

    for failed in (left, piped):
        assert failed.returncode == 1, failed.stderr
        assert "the training failed in train() after its save of step 4" in failed.stderr
    assert caught.returncode == 0, caught.stderr
    assert "trained to 5" in caught.stdout


@pytest.mark.slow
def test_a_program_that_exits_in_the_middle_of_a_save_has_ended_by_itself(scene: Scene, server: ServerProcess) -> None:
    piped = scene(f"{scene.training('exits')} | cat", "--max-restarts", "0")

    assert piped.returncode == 0, piped.stderr
    assert "inside train(), with its save of step 4: counted as finished with that" in piped.stderr
    assert kept(server, scene.run_id) == [(4, ["latest", "step-4"])]


@pytest.mark.slow
def test_a_training_that_stops_early_says_where_and_that_it_can_go_on(scene: Scene) -> None:
    done = scene(f"exec {scene.training('stops')}", "--max-restarts", "1")

    assert done.returncode == 0, done.stderr
    assert "the training ended by itself at step 4 of 8, and the same command goes on from there" in done.stderr
    assert "inside train()" not in done.stderr
    assert events(scene.out, "restart") == []


@pytest.mark.slow
def test_what_a_command_leaves_running_that_never_begins_to_train_is_no_success(scene: Scene) -> None:
    failed = shlex.join([sys.executable, "-c", "import time; time.sleep(1); raise FileNotFoundError('no such dataset')"])

    done = scene(f"exec setsid {failed}")

    assert done.returncode == 1, done.stderr
    assert "has ended and never began to train; its exit status is not known" in done.stderr


@pytest.mark.slow
def test_a_training_that_still_loads_in_a_session_of_its_own_does_not_outlive_a_notice(
    scene: Scene, tmp_path: Path, ended: Ended
) -> None:
    pid, log = tmp_path / "pid", tmp_path / "log"
    loads = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(300)"
    process = ended(scene.tool.start(*scene.line(f"setsid -w {shlex.join([sys.executable, '-c', loads])}"), log=log))
    wait_for(lambda: pid.exists() and pid.read_text(), what="the process")

    process.terminate()

    assert process.wait(60) == 75, log.read_text()
    assert processes.start_time(int(pid.read_text())) is None


@pytest.mark.slow
def test_a_second_training_that_the_command_leaves_running_after_the_first_is_followed_too(
    scene: Scene, server: ServerProcess
) -> None:
    longer = PROGRAM.replace('"--max-steps", "8"', '"--max-steps", "12"')
    second = scene.out.with_name("longer.py")
    second.write_text(longer.replace("trainer.train()", "trainer.train(resume_from_checkpoint=True)"))

    done = scene(f"{scene.training('plain')}; {scene.training('plain').replace('train.py', second.name)} & true")

    assert done.returncode == 0, done.stderr
    assert "trained to 12" in done.stdout
    assert kept(server, scene.run_id)[-1][0] == 12
