"""Real checkpoints of every layout, made once per test run, and the table of what was caught at its end."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.figures import Table
from tests.shared_folders import made_once

SCRIPT = Path(__file__).with_name("saves.py")
DEEPSPEED = "CKPTSYNC_TEST_DEEPSPEED_PYTHON"
TRANSFORMERS_4 = "CKPTSYNC_TEST_TRANSFORMERS4_PYTHON"
GROUPS = {
    "one-process": ("plain", "sharded", "peft", "weights-only"),
    "two-processes": ("ddp", "fsdp-full", "fsdp-sharded"),
    "deepspeed": ("zero-1", "zero-2", "zero-3"),
    "transformers-4": ("plain-4", "sharded-4"),
}
LAYOUTS = tuple(layout for layouts in GROUPS.values() for layout in layouts)
Rows = dict[str, Counter[str]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "layout" in metafunc.fixturenames:
        metafunc.parametrize("layout", LAYOUTS)


@pytest.fixture(scope="session")
def table() -> Iterator[Rows]:
    """Counts by layout, printed at the end of the run."""
    rows: Rows = {}
    yield rows
    columns = list(dict.fromkeys(column for counts in rows.values() for column in counts if not column.startswith("of ")))
    shown = Table("damaged checkpoints caught before an upload", ("layout", *columns), zero=())
    for name, counts in {**rows, "all": sum(rows.values(), Counter())}.items():
        shown.add(name, *(cell(counts, column) for column in columns))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a layout to its real checkpoint-2. Skips where what would make it is not installed."""

    def find(layout: str) -> Path:
        group = next(name for name, layouts in GROUPS.items() if layout in layouts)
        python = python_of(group)
        if not Path(python).exists():
            pytest.skip(python)
        saves = made_once(tmp_path_factory, f"saves-{group}", lambda output: save(group, python, output))
        return saves / layout.removesuffix("-4") / "checkpoint-2"

    return find


@pytest.fixture
def checkpoint(layout: str, saved: Callable[[str], Path]) -> Path:
    """A real checkpoint-2 of the layout. Shared by all tests: copy it before you change it."""
    return saved(layout)


def python_of(group: str) -> str:
    """The interpreter that can make the layouts of a group, or the reason why there is none."""
    return {"deepspeed": deepspeed_python, "transformers-4": transformers_4_python}.get(group, lambda: sys.executable)()


def save(group: str, python: str, output: Path) -> None:
    """Make the layouts of a group."""
    command = [python, str(SCRIPT), str(output), *(layout.removesuffix("-4") for layout in GROUPS[group])]
    if group in ("two-processes", "deepspeed"):
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(command, env=environment(python), capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def environment(python: str) -> dict[str, str]:
    """Small, quiet and offline; with the interpreter's own tools first (DeepSpeed builds an extension with ninja)."""
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "PYTEST"))}
    return kept | {"PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def quiet_environment() -> dict[str, str]:
    """The environment for scripts that run in this interpreter."""
    return environment(sys.executable)


def deepspeed_python() -> str:
    if importlib.util.find_spec("deepspeed"):
        return sys.executable
    return os.environ.get(DEEPSPEED, f"deepspeed is not installed, and {DEEPSPEED} names no Python that has it")


def transformers_4_python() -> str:
    return os.environ.get(TRANSFORMERS_4, f"{TRANSFORMERS_4} names no Python with transformers 4.57")


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """A function that copies a checkpoint with its modification times, under its own name."""

    def duplicate(source: Path) -> Path:
        target = tmp_path / source.name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        return target

    return duplicate


def cell(counts: Counter[str], column: str) -> str:
    """`caught/tried`, or nothing where it was not tried."""
    tried = counts[f"of {column}"]
    return f"{counts[column]}/{tried}" if tried else ""
