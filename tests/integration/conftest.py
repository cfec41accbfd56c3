"""A real server, and ckptsync as a user runs it: the command, in a home of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server_process import ServerProcess

TRAINING = (sys.executable, "-m", "ckptsync.trainer.tiny")


class Tool:
    """The command `ckptsync` in an environment that knows the test's server and nothing of this machine's user."""

    def __init__(self, home: Path, server: ServerProcess | None = None, **variables: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "CKPTSYNC_", "XDG_"))}
        ours = {"HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_DIR": str(home), "WANDB_CONSOLE": "off"}
        self.home = home
        self.environment = kept | ours | (server.environment if server else {}) | {"WANDB_PROJECT": "tests"} | variables
        self.environment.pop("WANDB_ENTITY", None)

    def __call__(self, *words: str | Path, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*words),
            env=self.environment | variables,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def start(self, *words: str | Path, log: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command and leave it running. What it says goes to a file."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(*words),
                env=self.environment | variables,
                cwd=self.home,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )

    def json(self, *words: str | Path) -> Any:
        """What a command with --json prints."""
        done = self(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @staticmethod
    def command(*words: str | Path) -> list[str]:
        return [sys.executable, "-m", "ckptsync", *map(str, words)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the tests of a module; each test has a run of its own on it."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as started:
        yield started


@pytest.fixture
def tool(tmp_path: Path, server: ServerProcess) -> Tool:
    """The command, connected to the server."""
    return Tool(tmp_path / "home", server)


@pytest.fixture
def ended() -> Iterator[Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]]:
    """Registers a process that must not outlive its test."""
    processes: list[subprocess.Popen[bytes]] = []

    def register(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        processes.append(process)
        return process

    yield register
    for process in processes:
        if process.poll() is None:
            kill_tree(process.pid)
        process.wait(30)


def wait_for(condition: Callable[[], Any], *, seconds: float = 60, what: str) -> Any:
    """The first true answer of a condition; fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not in {seconds} s: {what}")


def descendants(pid: int) -> list[int]:
    """Every process below this one."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
        except OSError:
            continue
    return found


def kill_tree(pid: int) -> None:
    """SIGKILL for a process and all below it: the machine is gone."""
    for each in [pid, *descendants(pid)]:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue


def training(output_dir: Path, *, steps: int = 12, save: int = 4, seconds: float = 0.0, **options: Any) -> list[str]:
    """The command of a tiny real training."""
    extra = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    numbers = ["--max-steps", str(steps), "--save-steps", str(save), "--step-seconds", str(seconds)]
    return [*TRAINING, "--output-dir", str(output_dir), *numbers, *extra]
