"""A real server process and the real wandb client, which runs in processes of its own: its state is global."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server_process import ServerProcess

HEADER = """
import json, os, pathlib, sys, tempfile, time
import wandb

work = pathlib.Path(os.environ["WORK"])
quiet = wandb.Settings(console="off", silent=True)
reported = {}


def report(**values):
    reported.update(values)


def folder(**files):
    path = pathlib.Path(tempfile.mkdtemp(dir=work))
    for name, content in files.items():
        (path / name.replace("__", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def artifact(name, path, type="model", **arguments):
    made = wandb.Artifact(name, type, **arguments)
    made.add_dir(str(path), policy="immutable", skip_cache=True)
    return made


def error_of(action, *arguments, **named):
    try:
        action(*arguments, **named)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None
"""

FOOTER = """
(work / "reported.json").write_text(json.dumps(reported, default=str))
"""

Client = Callable[..., dict[str, Any]]


def run_client(script: str, server: ServerProcess, work: Path, *, timeout: float = 120, **environment: str) -> dict[str, Any]:
    """Run a script against the server in a process without the user's settings; returns what it reported."""
    work.mkdir(parents=True, exist_ok=True)
    program = work / "client.py"
    program.write_text(HEADER + script + FOOTER, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "CKPTSYNC_"))}
    private = {"HOME": work, "WANDB_DIR": work, "WANDB_CACHE_DIR": work / "cache", "WANDB_DATA_DIR": work / "data"}
    variables = {"WORK": work, "WANDB_SILENT": "true", "WANDB_CONFIG_DIR": work / "config", **private}
    variables |= {**server.environment, **environment}
    finished = subprocess.run(
        [sys.executable, str(program)],
        env=kept | {name: str(value) for name, value in variables.items()},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert finished.returncode == 0, f"{finished.stdout}\n{finished.stderr}"
    reported: dict[str, Any] = json.loads((work / "reported.json").read_text(encoding="utf-8"))
    return reported


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the tests of a module."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as process:
        yield process


@pytest.fixture
def client(server: ServerProcess, tmp_path: Path) -> Client:
    """Runs a script with the real client."""

    def run(script: str, **arguments: Any) -> dict[str, Any]:
        return run_client(script, server, tmp_path / "client", **arguments)

    return run
