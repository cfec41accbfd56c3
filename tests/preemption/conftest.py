"""Jobs as a user starts them: `ckptsync run` with a command, a real server, and what is left of both afterwards."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptsync import record
from ckptsync.upload.spool import Spool
from tests.integration.conftest import Tool, kill_tree, wait_for
from tests.preemption.metadata import AmazonService, AzureService, GoogleService, Service
from tests.server_process import ServerProcess

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

HISTORY = """
import json, sys, wandb
api = wandb.Api()
run = api.run(sys.argv[1])
rows = [row["train/global_step"] for row in run.scan_history(keys=["train/global_step", "train/loss"])]
runs = [each.id for each in api.runs(sys.argv[1].rpartition("/")[0]) if not each.id.startswith("ckptsync-")]
print(json.dumps({"state": run.state, "steps": rows, "runs": runs}))
"""


class Job:
    """One `ckptsync run` line, started as often as a test likes."""

    def __init__(self, tool: Tool, folder: Path, run_id: str) -> None:
        self.tool = tool
        self.run_id = run_id
        self.output_dir = folder / "out"
        self.log = folder / "job.log"
        self.spool = Spool(self.output_dir)
        self.options: list[str] = ["--notice", "none"]
        self.variables: dict[str, str] = {}
        self.command: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def saver(self, *options: object) -> list[str]:
        """The command of a training without torch."""
        return [sys.executable, str(HERE / "saver.py"), str(self.output_dir), *map(str, options)]

    @property
    def line(self) -> list[str]:
        """The same words, every time."""
        head = ["run", "--run-id", self.run_id, "--output-dir", str(self.output_dir), *self.options]
        return [*head, "--", *self.command]

    def start(self, **variables: str) -> subprocess.Popen[bytes]:
        """Start the line, and leave it running."""
        process = self.tool.start(*self.line, log=self.log, **(self.variables | variables))
        self._processes.append(process)
        return process

    def run(self, *, timeout: float = 120, **variables: str) -> int:
        """Run the line to its end; its exit code."""
        process = self.start(**variables)
        return process.wait(timeout)

    @property
    def said(self) -> str:
        """All that ckptsync and the training have said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def notes(self) -> list[str]:
        """What the training without torch did."""
        path = self.output_dir.with_suffix(".log")
        return path.read_text().splitlines() if path.exists() else []

    @property
    def starts(self) -> list[int]:
        """The steps at which it was started."""
        return [int(note.split()[1]) for note in self.notes if note.startswith("start")]

    @property
    def steps(self) -> list[int]:
        """The steps that it took, in order."""
        return [int(note.split()[1]) for note in self.notes if note.startswith("step")]

    @property
    def events(self) -> list[dict[str, Any]]:
        """history.jsonl."""
        path = self.output_dir / ".ckptsync/history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def versions(self) -> list[dict[str, Any]]:
        """What is in the store, newest first."""
        found: list[dict[str, Any]] = self.tool.json("list", self.run_id)
        return found

    def durable(self) -> int:
        """The newest step with a receipt; 0 when there is none."""
        newest = self.spool.receipts.newest()
        return newest.step if newest else 0

    def wait_for_step(self, step: int) -> None:
        """Return when the training without torch has come so far."""
        self._wait_for(lambda: step in self.steps, f"step {step}")

    def wait_for_durable(self, step: int) -> None:
        """Return when a checkpoint of that step or a later one is durable."""
        self._wait_for(lambda: self.durable() >= step, f"a durable step {step}")

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """With what the job said where it doesn't come."""
        try:
            wait_for(condition, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said}") from None

    def history(self) -> tuple[Counter[int], list[str], str]:
        """How often each step stands in the run's history, the runs of the project, and the run's state."""
        done = subprocess.run(
            [sys.executable, "-c", HISTORY, f"local/{self.tool.environment['WANDB_PROJECT']}/{self.run_id}"],
            env=self.tool.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        return Counter(int(step) for step in answer["steps"]), answer["runs"], answer["state"]

    def end(self) -> None:
        """Nothing of it outlives its test."""
        for process in self._processes:
            if process.poll() is None:
                kill_tree(process.pid)
            process.wait(30)
        known = record.read(self.output_dir).values
        for named in [known.get("training"), *known.get("processes", [])]:
            if named and Path(f"/proc/{named['pid']}").exists():
                try:
                    os.kill(named["pid"], signal.SIGKILL)
                except ProcessLookupError:
                    continue


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the tests of a module; each test has a project of its own on it."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as started:
        yield started


@pytest.fixture
def job(tmp_path: Path, server: ServerProcess) -> Iterator[Job]:
    """A job in a project of its own."""
    one = Job(Tool(tmp_path / "home", server, WANDB_PROJECT=secrets.token_hex(4)), tmp_path, "job")
    yield one
    one.end()
    server.faults([])


SERVICES: dict[str, type[Service]] = {"gce": GoogleService, "aws": AmazonService, "azure": AzureService}


class Notifier:
    """Gives a job one kind of notice: a cloud's, by its metadata service, or a signal to ckptsync."""

    def __init__(self, kind: str, job: Job) -> None:
        self.kind = kind
        self._job = job
        self._service = SERVICES[kind]() if kind in SERVICES else None
        if self._service:
            job.options = ["--notice", kind]
            job.variables |= self._service.variables

    def give(self, process: subprocess.Popen[bytes]) -> None:
        """The machine goes away."""
        if self._service:
            self._service.announce(60)
        else:
            process.send_signal(signal.Signals[self.kind])

    def take_back(self) -> None:
        """Another machine, which nobody has marked."""
        if self._service:
            self._service.announced.clear()

    def close(self) -> None:
        """End the service."""
        if self._service:
            self._service.__exit__(None, None, None)


def until_gone(pid: int) -> None:
    """Return when a process is gone."""
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
