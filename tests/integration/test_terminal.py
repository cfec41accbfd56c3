"""`run` at a real terminal that is closed or suspended, as people do it with a shell in between."""

from __future__ import annotations

import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from ckptsync.signals import INSIST
from tests.integration.conftest import Tool, events, kept, program, wait_for, wait_for_event
from tests.server_process import ServerProcess
from tests.terminal import Pty

SAVES_AT_SIGTERM = (
    "def leave(number, frame):",
    "    make_checkpoint(pathlib.Path(sys.argv[1]), 8)",
    "    sys.exit(0)",
    "signal.signal(signal.SIGTERM, leave)",
    "make_checkpoint(pathlib.Path(sys.argv[1]), 4)",
    "pathlib.Path(sys.argv[1] + '.pid').write_text(str(os.getpid()))",
    "print('training', flush=True)",
    "time.sleep(600)",
)


def state(pid: int) -> str:
    """The kernel's letter for what a process does: R, S, T (stopped) …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_terminal_that_is_closed_is_a_preemption_notice(
    tool: Tool, server: ServerProcess, tmp_path: Path, terminal: type[Pty]
) -> None:
    out = tmp_path / "out"
    command = tool.command("run", "--run-id", "closed", "--output-dir", out, "--", *program(*SAVES_AT_SIGTERM), out)
    screen = terminal(*command, environment=tool.environment)
    screen.expect("training\r\n")

    screen.hang_up()

    assert screen.process.wait(60) == 75
    assert [step for step, _ in kept(server, "closed")][-1] == 8
    assert events(out, "preempted") == [("preempted", 8)]


@pytest.mark.slow
def test_a_trainer_that_prints_its_losses_saves_when_its_terminal_is_closed(
    tool: Tool, server: ServerProcess, tmp_path: Path, terminal: type[Pty]
) -> None:
    out = tmp_path / "out"
    options = shlex.split(f"--output-dir {out} --max-steps 600 --save-steps 600 --step-seconds 0.2 --report-to none")
    train = program(
        "from transformers import PrinterCallback",
        "from ckptsync.trainer import tiny",
        f"trainer = tiny.build(tiny.parse({options}))",
        "trainer.add_callback(PrinterCallback)",
        "trainer.train()",
    )
    command = tool.command("run", "--run-id", "printing", "--output-dir", out, "--", *train)
    screen = terminal(*command, environment=tool.environment)
    screen.expect("'loss'")

    screen.hang_up()

    assert screen.process.wait(90) == 75
    ((step, aliases),) = kept(server, "printing")
    assert 0 < step < 600
    assert "preempted" in aliases


def test_ctrl_z_suspends_the_training_too_and_fg_continues_it(tool: Tool, tmp_path: Path, terminal: type[Pty]) -> None:
    command = tool.command("run", "--run-id", "suspended", "--output-dir", tmp_path, "--", *program(*SAVES_AT_SIGTERM), tmp_path)
    screen = terminal("bash", "--norc", "--noprofile", "-i", environment=tool.environment)
    screen.expect("$ ")
    screen.type(f"cd {tool.home}; {shlex.join(command)}\n")
    screen.expect("\ntraining")
    # Not while a process is being started: one that stops between vfork and exec would keep its parent from stopping.
    wait_for_event(tmp_path, "uploaded", 4)
    trainer = int(Path(f"{tmp_path}.pid").read_text())

    screen.type("\x1a")
    screen.expect("Stopped")
    suspended = state(trainer)
    screen.type("fg\n")
    wait_for(lambda: state(trainer) != "T", what="the training to go on")
    os.kill(trainer, 15)
    screen.type("echo code $?\n")

    assert suspended == "T"
    screen.expect("\ncode 0")


def test_ctrl_backslash_ends_the_training_too_and_what_it_saved_is_durable(
    tool: Tool, server: ServerProcess, tmp_path: Path, terminal: type[Pty]
) -> None:
    command = tool.command("run", "--run-id", "quit", "--output-dir", tmp_path, "--max-restarts", "3", "--")
    screen = terminal(*command, *program(*SAVES_AT_SIGTERM), str(tmp_path), environment=tool.environment)
    screen.expect("\ntraining")
    trainer = int(Path(f"{tmp_path}.pid").read_text())

    screen.type("\x1c")

    assert screen.process.wait(60) == 128 + signal.SIGQUIT
    assert not Path(f"/proc/{trainer}").exists()
    assert [step for step, _ in kept(server, "quit")] == [4]


def test_a_training_that_answers_ctrl_backslash_and_goes_on_may_be_asked_again(
    tool: Tool, tmp_path: Path, terminal: type[Pty]
) -> None:
    answers = (
        "signal.signal(signal.SIGQUIT, lambda *_: print('still here', flush=True))",
        "print('training', flush=True)",
        "while True: time.sleep(0.1)",
    )
    command = tool.command("run", "--run-id", "asked", "--output-dir", tmp_path, "--", *program(*answers))
    screen = terminal(*command, environment=tool.environment)
    screen.expect("\ntraining")

    for _ in range(2):
        screen.type("\x1c")
        screen.expect("still here")
        time.sleep(2 * INSIST)

    assert screen.process.poll() is None
    screen.type("\x03")
    screen.process.wait(30)
