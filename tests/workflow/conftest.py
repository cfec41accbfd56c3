"""One server and one training with everything on, which most rows of the README's table look at."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Tool
from tests.server.api import data
from tests.server_process import ServerProcess

PROGRAM = Path(__file__).with_name("program.py")
RUN = """query Run($project: String!, $name: String!) { project(name: $project, entityName: "local") { run(name: $name) {
    displayName state group tags summaryMetrics config historyLineCount outputArtifacts { edges { node { versionIndex
    artifactSequence { name } } } } inputArtifacts { edges { node { versionIndex artifactSequence { name } } } } } } }"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the tests of a module."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as started:
        yield started


@pytest.fixture
def tool(tmp_path: Path, server: ServerProcess) -> Tool:
    """The command, in a project of its own."""
    return Tool(tmp_path / "home", server)


def program(output_dir: Path, *words: str) -> list[str]:
    """The user's command line."""
    return [sys.executable, str(PROGRAM), "--output-dir", str(output_dir), *words]


def run_on(server: ServerProcess, run_id: str, project: str = "tests") -> dict[str, Any]:
    """A run as the server has it."""
    answer: dict[str, Any] = data(server.graphql(RUN, project=project, name=run_id))["run"]
    answer["summary"] = json.loads(answer["summaryMetrics"] or "{}")
    return answer


def names(run: dict[str, Any], which: str = "outputArtifacts") -> set[str]:
    """The artifacts that a run has made or used, with their versions."""
    nodes = [edge["node"] for edge in run[which]["edges"]]
    return {f"{node['artifactSequence']['name']}:v{node['versionIndex']}" for node in nodes}


def python(tool: Tool, script: str, *, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    """A program of a few lines, in the tool's environment, with the repository's tests in reach."""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=tool.environment | {"PYTHONPATH": root, "WANDB_SILENT": "true"} | variables,
        cwd=tool.home,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done


@dataclass(frozen=True, slots=True)
class Finished:
    """A training that came to its end under `ckptsync run`."""

    run_id: str
    output_dir: Path
    stderr: str
    tool: Tool


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, server: ServerProcess) -> Finished:
    """With the best model loaded at the end, a table of predictions, a run name; in the default project."""
    folder = tmp_path_factory.mktemp("finished")
    tool = Tool(folder / "home", server)
    del tool.environment["WANDB_PROJECT"]
    words = ["--run-name", "bert-high-lr", "--load-best", "--table", "--learning-rate", "0.3"]
    done = tool(
        "run",
        "--run-id",
        "whole",
        "--output-dir",
        folder / "out",
        "--backlog",
        "all",
        "--quiet-period",
        "0.2",
        "--",
        *program(folder / "out", *words),
        timeout=150,
        WANDB_LOG_MODEL="checkpoint",
    )
    assert done.returncode == 0, done.stderr
    return Finished("whole", folder / "out", done.stderr, tool)
