"""A real watcher, a real server and a training that saves at speed, with random kills of each and random network failures."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import evidence
from tests.integration.conftest import Tool, descendants, kill_tree, wait_for
from tests.server_process import ServerProcess
from tests.soak.reckoning import Reckoning, reckon
from tests.soak.training import Ledger

RUN = "soak"
REPOSITORY = Path(__file__).parents[2]
FILES = {"path": "/storage/content"}
UPLOADS = {"method": "PUT", **FILES}
MAKE_RUN = """mutation UpsertBucket($name: String!) { upsertBucket(input: {name: $name, modelName: "tests", entityName: "local",
    config: "{}"}) { bucket { id } } }"""


class Soak:
    """Everything that runs, in one folder. The same seed makes the same decisions; their effect differs with the timing."""

    def __init__(self, folder: Path, seed: int, *, calm: float = 0.0) -> None:
        self.counts: Counter[str] = Counter()
        self.memory: list[tuple[float, int, int]] = []
        self.output_dir = folder / "out"
        self.output_dir.mkdir()
        self._folder = folder
        self._calm = calm
        self._random = random.Random(seed)
        self._ledger = folder / "ledger.jsonl"
        self._server = ServerProcess(folder / "server")
        self._server_up = False
        self._tool: Tool
        self._watcher: subprocess.Popen[bytes]
        self._training: subprocess.Popen[bytes]
        self._born = 0.0
        self._first_rss = 0

    def run(self, seconds: float) -> Reckoning:
        """Run everything for that long, wait until it is quiet, and account for every checkpoint."""
        self._server.start()
        self._server_up = True
        self._server.graphql(MAKE_RUN, name=RUN)
        self._tool = Tool(self._folder / "home", self._server)
        try:
            self._start_watcher()
            self._start_training()
            self._upset_for(seconds)
            return self._come_to_rest()
        finally:
            for process in (self._watcher, self._training):
                kill_tree(process.pid)
                process.wait(30)
            self._server.stop()

    def _upset_for(self, seconds: float) -> None:
        """Inject one fault after another. In the last, calm part the watcher is left alone, so its memory can be compared."""
        deadline = time.monotonic() + seconds
        blows: list[tuple[int, Callable[[], None]]] = [
            (5, self._kill_watcher),
            (2, self._stop_watcher),
            (6, self._kill_upload),
            (3, self._kill_server),
            (4, self._kill_training),
            (8, self._break_line),
            (1, self._resume_elsewhere),
        ]
        while (left := deadline - time.monotonic()) > 0:
            spared = (self._kill_watcher, self._stop_watcher) if left < seconds * self._calm else ()
            possible = [(weight, blow) for weight, blow in blows if blow not in spared]
            self._random.choices([blow for _, blow in possible], [weight for weight, _ in possible])[0]()
            self.counts["rounds"] += 1
            self._weigh()
            time.sleep(min(left, self._random.uniform(0.2, 4.0)))

    def _kill_watcher(self) -> None:
        self._weigh(last=True)
        kill_tree(self._watcher.pid)
        self._watcher.wait(30)
        self.counts["kills of the watcher"] += 1
        time.sleep(self._random.uniform(0.0, 1.5))
        self._start_watcher()

    def _stop_watcher(self) -> None:
        """SIGTERM, with little patience: half of the time, SIGKILL follows before the watcher has exited."""
        self._weigh(last=True)
        self._watcher.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._watcher.wait(self._random.choice((1.0, 15.0)))
        kill_tree(self._watcher.pid)
        self._watcher.wait(30)
        self.counts["stops of the watcher"] += 1
        self._start_watcher()

    def _kill_upload(self) -> None:
        for pid in descendants(self._watcher.pid):
            with contextlib.suppress(OSError):
                if b"ckptsync.publish" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    self.counts["kills of the upload process"] += 1

    def _kill_server(self) -> None:
        self._server.kill()
        self._server_up = False
        self.counts["kills of the server"] += 1
        time.sleep(self._random.choice((0.0, 0.5, 5.0)))
        self._server.start()
        self._server_up = True

    def _kill_training(self) -> None:
        self._training.kill()
        self._training.wait(30)
        self.counts["kills of the training"] += 1
        self._start_training()

    def _break_line(self) -> None:
        count = self._random.randint(1, 20)
        rules: list[tuple[dict[str, str], int, dict[str, Any]]] = [
            (UPLOADS, count, {"status": 503}),
            (UPLOADS, count, {"status": 429, "headers": {"Retry-After": "1"}}),
            (UPLOADS, count, {"status": 403}),
            (UPLOADS, count, {"drop": "during"}),
            (UPLOADS, count, {"drop": "after"}),
            (UPLOADS, count, {"throttle": 200_000}),
            (UPLOADS, 1, {"delay": 60}),
            ({"operation": "CommitArtifact"}, self._random.randint(1, 3), {"drop": "after"}),
            ({"operation": "CreateArtifact"}, self._random.randint(1, 4), {"status": 500}),
            ({"path": "/graphql"}, count, {"status": 502}),
            ({"path": "/graphql"}, count, {"drop": "before"}),
            ({"path": "/graphql"}, count, {"delay": 1}),
        ]
        match, hits, action = self._random.choice(rules)
        self._server.faults([{"match": match, "count": hits, "action": action}])
        self.counts["faults in the line"] += 1

    def _resume_elsewhere(self) -> None:
        """A resume on another machine gets a complete save, or reports that it could not."""
        into = self._folder / "elsewhere"
        done = self._tool("resume", RUN, "--output-dir", into, "--download-only", timeout=170)
        if done.returncode == 0:
            saves = list(Ledger.read(self._ledger).saves.values())
            assert evidence.digests(Path(done.stdout.strip())) in saves, f"resume placed a torn checkpoint: {done.stderr}"
            self.counts["resumes elsewhere"] += 1
        else:
            assert done.returncode in (4, 6), f"exit {done.returncode}: {done.stderr}"
            self.counts["resumes that could not reach a version"] += 1
        shutil.rmtree(into, ignore_errors=True)

    def _start_watcher(self) -> None:
        extra = self._random.choice(([], [], ["--backlog", "all"], ["--spool-limit", "2M"]))
        words = ("--run-id", RUN, "--quiet-period", "0.3", "--retry-for", "86400", "--stall-timeout", "15", *extra)
        self._watcher = self._tool.start("watch", self.output_dir, *words, log=self._folder / "watch.log")
        self._born, self._first_rss = time.monotonic(), 0

    def _start_training(self) -> None:
        seed = str(self._random.randrange(2**31))
        words = (sys.executable, "-m", "tests.soak.training", str(self.output_dir), str(self._ledger), seed)
        self._training = subprocess.Popen(words, cwd=REPOSITORY, env=self._tool.environment)

    def _weigh(self, *, last: bool = False) -> None:
        """Record the watcher's memory: three seconds after its start, and when it ends."""
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self._watcher.pid}/status").read_text().splitlines()
            resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
            age = time.monotonic() - self._born
            if not self._first_rss and age > 3:
                self._first_rss = resident
            if last and self._first_rss:
                self.memory.append((age, self._first_rss, resident))

    def _come_to_rest(self) -> Reckoning:
        self._training.terminate()
        # It may have started too recently to handle the signal yet.
        assert self._training.wait(30) in (0, -signal.SIGTERM)
        self._server.faults([])
        self._weigh(last=True)
        if self._watcher.poll() is not None:
            raise AssertionError(f"the watcher had ended by itself: {self._log_tail()}")
        self._watcher.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._watcher.wait(60)
        kill_tree(self._watcher.pid)
        self._watcher.wait(30)
        done = self._tool("watch", self.output_dir, "--run-id", RUN, "--once", "--quiet-period", "0.3", timeout=170)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: self._server.request("GET", "/healthz")[0] == 200, what="the server")
        found = reckon(self.output_dir, Ledger.read(self._ledger), evidence.versions(self._server, f"checkpoint-{RUN}"))
        found.figures = {**dict(sorted(self.counts.items())), **found.figures, **self._memory_figures()}
        return found

    def _memory_figures(self) -> dict[str, object]:
        if not self.memory:
            return {}
        age, first, last = max(self.memory)
        return {"longest life of a watcher": f"{age:.0f} s", "its memory": f"{first / 1024:.1f} MiB, then {last / 1024:.1f} MiB"}

    def _log_tail(self) -> str:
        return (self._folder / "watch.log").read_text()[-2000:]
