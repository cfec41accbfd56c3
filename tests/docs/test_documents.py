"""The documents match the code: commands, help, exit codes, modules, make targets."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

import ckptsync
from ckptsync import errors
from ckptsync.cli import COMMANDS, cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
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


def test_every_package_and_every_module_at_the_root_stands_in_the_architecture() -> None:
    package = Path(ckptsync.__file__).parent
    names = [path.stem for path in package.glob("[a-z]*.py")] + [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]

    missing = [name for name in names if f"`{name}`" not in ARCHITECTURE]

    assert not missing


def test_every_path_in_the_architecture_exists() -> None:
    package = Path(ckptsync.__file__).parent
    named = {path for path in re.findall(r"`([a-z_]+/[a-z_/]*)`", ARCHITECTURE) if (package / path.partition("/")[0]).is_dir()}

    missing = [path for path in named if not (package / path).exists() and not (package / f"{path}.py").exists()]

    assert named
    assert not missing


def test_the_architecture_is_short() -> None:
    assert len(ARCHITECTURE.splitlines()) <= 150


def test_the_test_command_of_the_readme_is_the_one_that_the_gate_runs() -> None:
    assert re.search(r'^pip install "\.\[test\]" && pytest$', README, re.MULTILINE)


def test_every_path_in_contributing_exists() -> None:
    named = set(re.findall(r"(?:src|tests|\.ci)/[\w./]*", CONTRIBUTING))

    missing = [path for path in named if not (ROOT / path).exists()]

    assert named
    assert not missing


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make (\w+)|`make (\w+)`", CONTRIBUTING, re.MULTILINE))), ids="".join)
def test_every_make_target_in_contributing_exists(target: tuple[str, ...]) -> None:
    done = subprocess.run(["make", "-n", "".join(target)], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


GUIDE = {
    "project": ("guide", "test_project_"),
    "logging": ("guide", "test_logging_"),
    "`WANDB_LOG_MODEL=checkpoint`": ("guide", "test_checkpoint_"),
    "`WANDB_LOG_MODEL=end`": ("guide", "test_end_"),
    "`WANDB_LOG_MODEL=false`": ("commands", "test_a_training_that_asks_for_no_upload_"),
    "best model": ("guide", "test_best_model_"),
    "load a model": ("guide", "test_load_"),
    "resume": ("guide", "test_resume_in_python_"),
    "registry": ("guide", "test_registry_"),
    "tables of predictions": ("guide", "test_tables_"),
    "extra variables": ("guide", "test_extra_variables_"),
    "own `wandb.init`": ("guide", "test_own_init_"),
    "notebook": ("notebook", "test_a_notebook_"),
    "what WandbCallback uploaded": ("guide", "test_what_hf_uploaded_"),
}
"""The rows of the README's table of W&B's guide, and the test of each: its file in tests/workflow, and how its name begins."""


def test_every_row_of_the_table_of_the_guide_has_its_test() -> None:
    table = README.partition("| in the guide | with ckptsync |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()]

    missing = [row for row in rows if row not in GUIDE]
    untested = [
        row
        for row, (file, start) in GUIDE.items()
        if f"\ndef {start}" not in (ROOT / "tests" / "workflow" / f"test_{file}.py").read_text()
    ]

    assert not missing
    assert not untested
    assert len(rows) == len(GUIDE)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_commands_says_of_each_what_the_command_itself_says(command: str) -> None:
    found = cli.get_command(click.Context(cli), command)

    assert found is not None
    assert found.get_short_help_str(limit=110) == COMMANDS[command][1]
