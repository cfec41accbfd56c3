"""The documents say what is: commands, help, exit codes and modules."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ckptsync
from ckptsync import errors
from ckptsync.cli import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
ERRORS = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, errors.CkptsyncError)]


def _help(*words: str) -> str:
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-m", "ckptsync", *words, "--help"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_help_in_the_readme_is_the_help_of_the_command() -> None:
    shown = _help()

    assert f"```\n{shown}\n```" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_a_row_in_the_readme(command: str) -> None:
    shown = _help(command)

    assert f"Example: ckptsync {command}" in " ".join(shown.split())
    assert re.search(rf"^\| `ckptsync {command}\b", README, re.MULTILINE)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_stands_beside_its_exit_code(error: type[errors.CkptsyncError]) -> None:
    row = next((line for line in README.splitlines() if line.startswith("|") and f"`{error.__name__}`" in line), None)

    assert row is not None
    assert row.split("|")[1].strip() == str(error.exit_code)


def test_every_module_stands_in_the_architecture() -> None:
    package = Path(ckptsync.__file__).parent
    modules = [path.stem for path in package.glob("[a-z]*.py")] + [
        f"{path.parent.name}/" for path in package.glob("*/__init__.py")
    ]

    missing = [name for name in modules if f"| `{name}` |" not in ARCHITECTURE]

    assert not missing


def test_the_architecture_is_short() -> None:
    assert len(ARCHITECTURE.splitlines()) <= 150


def test_the_test_command_of_the_readme_is_the_one_that_the_gate_runs() -> None:
    assert re.search(r'^pip install "\.\[test\]" && pytest$', README, re.MULTILINE)
