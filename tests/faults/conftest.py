"""A server that can be told to fail, a watcher that lives through it, and the table of what happened."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptsync.upload.spool import Spool
from tests import evidence
from tests.checkpoints import make_checkpoint
from tests.figures import Table
from tests.integration.conftest import Tool, kill_tree, wait_for
from tests.server_process import ServerProcess

HEADINGS = ("fault", "what happened", "lost", "torn", "twice")
TABLE = Table("faults: what happened, and what was lost", HEADINGS, zero=("lost", "torn", "twice"))

Note = Callable[[str, str, evidence.Damage], None]

MAKE_RUN = """mutation UpsertBucket($name: String!) { upsertBucket(input: {name: $name, modelName: "tests", entityName: "local",
    config: "{}"}) { bucket { id } } }"""


@pytest.fixture
def note() -> Note:
    """Writes a row: the fault, what happened in words, and the damage, which a test can't overlook here."""

    def write(fault: str, happened: str, damage: evidence.Damage) -> None:
        TABLE.add(fault, happened, len(damage.lost), len(damage.torn), len(damage.duplicate))
        assert damage == evidence.Damage()

    return write


class Followed:
    """An output folder with a watcher, the checkpoints that were saved in it, and the server they should be on."""

    def __init__(self, folder: Path, server: ServerProcess, run_id: str, *words: str) -> None:
        self.output_dir = folder / "out"
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.server = server
        self.run_id = run_id
        self.saves: dict[str, evidence.Digests] = {}
        self.tool = Tool(folder / "home", server)
        self.spool = Spool(self.output_dir)
        self._words = ("--run-id", run_id, "--quiet-period", "0.2", "--retry-for", "600", *words)
        self._log = folder / "watch.log"
        self._step = 0
        self._watcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._watcher = self.tool.start("watch", self.output_dir, *self._words, log=self._log)
        wait_for(lambda: "watching" in self.said(), what="the watcher")

    @property
    def pid(self) -> int:
        """Of the watcher."""
        assert self._watcher is not None
        return self._watcher.pid

    def once(self, **more: Any) -> subprocess.CompletedProcess[str]:
        """Upload what is there and return."""
        return self.tool("watch", self.output_dir, *self._words, "--once", **more)

    def once_without_privileges(self) -> subprocess.CompletedProcess[str]:
        """The same as a user for whom file modes count."""
        return without_privileges(self.tool, "watch", self.output_dir, *self._words, "--once")

    def kill_watcher(self) -> None:
        """The watcher alone dies, by SIGKILL."""
        assert self._watcher is not None
        self._watcher.kill()
        self._watcher.wait(30)

    def kill(self) -> None:
        """The machine is gone."""
        if self._watcher:
            kill_tree(self._watcher.pid)
            self._watcher.wait(30)

    def save(self, *, size: int = 64, **more: Any) -> str:
        """Save the next checkpoint, and return its name."""
        self._step += 10
        folder = make_checkpoint(self.output_dir, self._step, content=self.run_id, size=size, **more)
        self.saves[folder.name] = evidence.digests(folder)
        return folder.name

    def durable(self, name: str, *, seconds: float = 60) -> None:
        """Wait for the receipt of a checkpoint."""

        def found() -> bool:
            return any(receipt.snapshot.startswith(f"{name}.") for receipt in self.spool.receipts)

        wait_for(found, seconds=seconds, what=f"the receipt of {name}\n{self.said()}")

    def said(self) -> str:
        """What the watcher has said so far."""
        return self._log.read_text() if self._log.exists() else ""

    def kept(self) -> list[evidence.Kept]:
        """What the server holds."""
        return evidence.versions(self.server, f"checkpoint-{self.run_id}")

    def damage(self) -> evidence.Damage:
        """What is lost, torn or there twice of all that was saved."""
        return evidence.damage(self.kept(), self.saves, wanted=self.saves)

    def make_run(self) -> None:
        """Make the training's own run known to the server."""
        assert "errors" not in self.server.graphql(MAKE_RUN, name=self.run_id)

    def resume(self, into: Path, **more: Any) -> subprocess.CompletedProcess[str]:
        """Bring the newest checkpoint into a folder."""
        return self.tool("resume", self.run_id, "--output-dir", into, "--download-only", **more)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the tests of a module; each has a run of its own on it."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as started:
        yield started


@pytest.fixture(autouse=True)
def no_faults_afterwards(server: ServerProcess) -> Iterator[None]:
    """A rule must not outlive its test."""
    yield
    server.faults([])


def without_privileges(tool: Tool, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user for whom file modes count: root without the capabilities that override them. Else skips."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can play two users")
    return subprocess.run(
        ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", *tool.command(*words)],
        env=tool.environment,
        cwd=tool.home,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A mount for as long as the block lasts. Skips where this user may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("only root can mount: not tried here")
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mounting is not possible here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
