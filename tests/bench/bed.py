"""The test bed: a scratch folder, the embedded server, and ckptsync as a user runs it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptsync.server.http.auth import signing_secret
from ckptsync.server.transfers.signing import Links, Signer
from tests.server_process import ServerProcess

PROJECT = "bench"
LARGE_CONTENT = 2**20


@dataclass(slots=True)
class Bed:
    """`scratch` may be in memory; `disk` has to be on a disk. `rounds` is how often each contender runs."""

    scratch: Path
    disk: Path
    rounds: int
    quick: bool
    say: Callable[[str], None]
    _number: int = field(default=0)

    def folder(self, name: str, *, on_disk: bool = False) -> Path:
        """A new, empty folder."""
        self._number += 1
        made = (self.disk if on_disk else self.scratch) / f"{self._number:03d}-{name}"
        made.mkdir(parents=True)
        return made

    @contextlib.contextmanager
    def server(self) -> Iterator[BenchServer]:
        """The embedded server on a new data folder, without faults."""
        root = self.folder("server")
        with BenchServer(root / "data", faults=False) as server:
            yield server
        shutil.rmtree(root)

    def environment(self, server: ServerProcess | None = None, **variables: str) -> dict[str, str]:
        """A process's environment: the bench's server, and nothing of this machine's user."""
        home = self.scratch / "home"
        home.mkdir(exist_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "CKPTSYNC_", "XDG_"))}
        ours = {"HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_DIR": str(home), "WANDB_CONSOLE": "off"}
        return kept | ours | (server.environment if server else {}) | {"WANDB_PROJECT": PROJECT} | variables

    def ckptsync(self, server: ServerProcess | None, *words: str | Path) -> None:
        """Run a command to its end; raises if it fails."""
        done = subprocess.run(command(*words), env=self.environment(server), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ckptsync {words[0]} ended with {done.returncode}: {done.stderr[-2000:]}")

    @contextlib.contextmanager
    def watcher(self, server: ServerProcess, output_dir: Path, run_id: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """`ckptsync watch` on a folder, from the moment it holds the lock until the block ends."""
        log = output_dir.with_name(f"{output_dir.name}.log")
        with log.open("ab") as output:
            process = subprocess.Popen(
                command("watch", output_dir, "--run-id", run_id, "--notice", "none", *words),
                env=self.environment(server),
                stdout=output,
                stderr=output,
            )
        try:
            wait_for(lambda: b"watching" in log.read_bytes() or process.poll() is not None)
            yield process
        finally:
            # Otherwise the watcher would wait a quiet period for what is left there.
            for folder in output_dir.glob("checkpoint-*"):
                shutil.rmtree(folder)
            process.terminate()
            process.wait(60)


class BenchServer(ServerProcess):
    """The embedded server, with the upload and download URLs that a minimal client needs, and a way to drop what was uploaded."""

    def put_link(self, key: str) -> str:
        """The URL to upload that key to."""
        return self._links().put(f"/storage/content/{key}")

    def get_link(self, key: str) -> str:
        """The URL to download that key from."""
        return self._links().get(f"/storage/content/{key}")

    def forget(self) -> None:
        """Drop every large content, so that the next upload sends the same bytes again, and memory is freed."""
        for path in (self.data_dir / "content").glob("*/*/*"):
            if path.stat().st_size >= LARGE_CONTENT:
                path.unlink()

    def _links(self) -> Links:
        return Links(Signer(signing_secret(self.data_dir)), self.url, 3600)


class Md5Server(BenchServer):
    """A server that doesn't offer XXH128, as W&B's own service may not."""

    program = (
        "-c",
        "import importlib.util, sys; real = importlib.util.find_spec; "
        "importlib.util.find_spec = lambda name, *rest: None if name == 'xxhash' else real(name, *rest); "
        "from ckptsync.server.__main__ import main; sys.exit(main())",
    )
    """As if xxhash were not installed there."""


class Helper:
    """A process with the wandb client that runs one job after another; `tests.bench.client` defines them."""

    def __init__(self, environment: dict[str, str], cwd: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.client"],
            env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **job: Any) -> Any:
        """Run one job and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError("the client's process ended")

    def close(self) -> None:
        """Stop the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def command(*words: str | Path) -> list[str]:
    """The command line of a ckptsync command."""
    return [sys.executable, "-m", "ckptsync", *map(str, words)]


def wait_for(condition: Callable[[], bool], *, seconds: float = 600, every: float = 0.002) -> None:
    """Return as soon as the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("waited in vain")
        time.sleep(every)
