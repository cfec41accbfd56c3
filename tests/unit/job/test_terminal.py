"""A training at a real terminal: it can read, and Ctrl-C, Ctrl-Z and the end leave the terminal as they found it."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.terminal import Pty

SUPERVISED = """
import os, sys
from ckptsync.job.training import StartedTraining
training = StartedTraining([sys.executable, "-c", sys.argv[1]], os.environ)
try:
    code = training.wait()
except KeyboardInterrupt:
    code = "interrupted"
print("code", code, "ours", os.tcgetpgrp(0) == os.getpgrp())
"""


def supervised(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", SUPERVISED, code)


def test_a_training_can_ask_a_question_at_the_terminal(terminal: type[Pty]) -> None:
    screen = terminal(*supervised("print('got', input('name? '))"))

    screen.expect("name? ")
    screen.type("bert\n")

    screen.expect("got bert")
    screen.expect("code 0 ours True")


def test_a_debugger_works_in_a_training(terminal: type[Pty]) -> None:
    screen = terminal(*supervised("number = 41\nbreakpoint()\nprint('went on')"))

    screen.expect("(Pdb) ")
    screen.type("number + 1\n")
    screen.expect("42")
    screen.type("continue\n")

    screen.expect("went on")
    screen.expect("code 0 ours True")


def test_ctrl_c_ends_a_training_that_has_the_terminal_and_the_job_with_it(terminal: type[Pty]) -> None:
    # Naps: Python handles a signal that comes just before a sleep only after it.
    screen = terminal(*supervised("import time\ninput('name? ')\nprint('training')\nfor _ in range(600): time.sleep(0.1)"))
    screen.expect("name? ")
    screen.type("bert\n")
    screen.expect("training")

    screen.type("\x03")

    screen.expect("code interrupted ours True")


def test_ctrl_z_stops_the_job_and_fg_continues_it(terminal: type[Pty], tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(SUPERVISED)
    (tmp_path / "train.py").write_text("print('got', input('name? '), input('again? '))")
    screen = terminal("bash", "--norc", "--noprofile", "-i")
    screen.expect("$ ")
    screen.type(f'{sys.executable} {tmp_path}/job.py "$(cat {tmp_path}/train.py)"\n')
    screen.expect("name? ")
    screen.type("bert\n")
    screen.expect("again? ")

    screen.type("\x1a")
    screen.expect("Stopped")
    screen.type("fg\n")
    screen.type("yes\n")

    screen.expect("got bert yes")
    screen.expect("code 0 ours True")
