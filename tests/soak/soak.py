"""A real watcher, a real server and a training that saves at speed: each is killed at random, and all around them fails."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckptsync.upload.spool import Spool
from tests import evidence
from tests.integration.conftest import wait_for
from tests.soak.reckoning import ADDED, Reckoning, reckon
from tests.soak.scene import Lasting, Scene
from tests.soak.training import RUN, Ledger

FILES = {"path": "/storage/content"}
UPLOADS = {"method": "PUT", **FILES}
GRAPHQL = {"path": "/graphql"}
SAMPLE = 20
"""How many versions are read again at the end by `verify --remote`; of all others the server's bytes are compared."""


class Soak:
    """One soak. The same seed makes the same decisions; their effect differs with the timing."""

    scene = Scene
    pauses = (0.2, 4.0)
    """The least and the most seconds from one fault to the next."""

    def __init__(self, folder: Path, seed: int, *, calm: float = 0.0) -> None:
        self.counts: Counter[str] = Counter()
        self.memory: list[tuple[float, int, int]] = []
        self.wrong: list[str] = []
        self.exits: list[str] = []
        self._folder = folder
        self._calm = calm
        self._random = random.Random(seed)
        self._scene = self.scene(folder, self._random)
        self._lasting = Lasting()
        self._first_rss = 0
        self._refused_until = 0.0
        self._began = time.monotonic()

    def run(self, seconds: float) -> Reckoning:
        """Run everything for that long, wait until it is quiet, and account for every checkpoint."""
        with self._scene.running():
            self._upset_for(seconds)
            return self._come_to_rest()

    def _upset_for(self, seconds: float) -> None:
        """Inject one fault after another. In the last, calm part the watcher is left alone, so its memory can be compared."""
        deadline = time.monotonic() + seconds
        spared_in_calm = (self._kill_watcher, self._orphan_upload, self._stop_watcher)
        while (left := deadline - time.monotonic()) > 0:
            spared = spared_in_calm if left < seconds * self._calm else ()
            possible = [(weight, blow) for weight, blow in self._blows() if blow not in spared]
            blow = self._random.choices([blow for _, blow in possible], [weight for weight, _ in possible])[0]
            self._note(blow.__name__.strip("_"))
            blow()
            self.counts["rounds"] += 1
            self._weigh()
            self._pause(min(left, self._random.uniform(*self.pauses)))

    def _blows(self) -> list[tuple[int, Callable[[], None]]]:
        """What may happen, with weights."""
        return [
            (4, self._kill_watcher),
            (4, self._orphan_upload),
            (4, self._stop_watcher),
            (5, self._kill_upload),
            (3, self._hang_upload),
            (3, self._kill_server),
            (3, self._hang_server),
            (4, self._kill_training),
            (8, self._break_line),
            (4, self._refuse_key_once),
            (4, self._fail_folder),
            (4, self._deny_folder),
            (1, self._replace_folder),
            (2, self._leave_foreign),
            (4, self._add_file),
            (4, self._turn_clock),
            (1, self._resume_elsewhere),
        ]

    def _pause(self, seconds: float) -> None:
        """Let it all run, end what has lasted long enough, and start again what ended by itself."""
        deadline = time.monotonic() + seconds
        while True:
            self._lasting.end_due()
            self._revive()
            if time.monotonic() >= deadline:
                return
            time.sleep(0.1)

    def _revive(self) -> None:
        """Start again what ended by itself."""
        if self._scene.training.poll() is not None:
            self.counts["trainings that ended by their folder"] += 1
            self._scene.start_training()
        if (code := self._scene.watcher.poll()) is not None:
            self.wrong.append(f"the watcher ended by itself with {code}: {self._log_tail(300)}")
            self._start_watcher()

    def _kill_watcher(self) -> None:
        self._weigh(last=True)
        self._scene.end_watcher()
        self.counts["kills of the watcher"] += 1
        time.sleep(self._random.uniform(0.0, 1.5))
        self._start_watcher()

    def _orphan_upload(self) -> None:
        """SIGKILL to the watcher alone: its upload process has to end as well, and may delete nothing of the next one's."""
        self._weigh(last=True)
        self._scene.watcher.kill()
        self._scene.watcher.wait(30)
        self.counts["upload processes orphaned"] += 1
        self._start_watcher()

    def _stop_watcher(self) -> None:
        """SIGTERM, with little patience: half of the time, SIGKILL follows before the watcher has exited.

        The training stands still meanwhile, so that it is known what exit code 0 has to mean.
        """
        self._weigh(last=True)
        training = self._scene.training.pid
        self._scene.stop_process(training)
        self._scene.watcher.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._scene.watcher.wait(self._random.choice((1.0, 15.0))) == 0:
                self._check_exit()
        self._scene.end_watcher()
        self._scene.continue_process(training)
        self.counts["stops of the watcher"] += 1
        self._start_watcher()

    def _check_exit(self) -> None:
        """Exit code 0, or 75, means that the last save is durable, and that nothing is queued."""
        self.counts["stops that exited with 0"] += 1
        ledger, spool = Ledger.read(self._scene.ledger), Spool(self._scene.output_dir, run_id=RUN)
        self._scene.mend_folder()
        left = [pinned.name for pinned in spool.pending()]
        if left:
            self.exits.append(f"exit 0 with {left} queued")
        last = list(ledger.saves)[-1:]
        if last and last == ledger.done[-1:] and (self._scene.output_dir / ledger.folders[last[0]]).is_dir():
            step = int(ledger.folders[last[0]].removeprefix("checkpoint-"))
            if not any(receipt.step == step for receipt in spool.receipts):
                self.exits.append(f"exit 0 without a receipt of step {step}: {self._log_tail(300)}")

    def _kill_upload(self) -> None:
        for pid in self._scene.uploads():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.counts["kills of the upload process"] += 1

    def _hang_upload(self) -> None:
        for pid in self._scene.uploads():
            self._scene.stop_process(pid)
            self._lasting.end_after(self._random.uniform(1, 20), lambda pid=pid: self._scene.continue_process(pid))  # type: ignore[misc]
            self.counts["upload processes that hung"] += 1

    def _kill_server(self) -> None:
        self._scene.restart_server(self._random.choice((0.0, 0.5, 5.0)))
        self.counts["kills of the server"] += 1

    def _hang_server(self) -> None:
        pid = self._scene.server.pid
        self._scene.stop_process(pid)
        self._pause(self._random.choice((2.0, 10.0, 25.0)))
        self._scene.continue_process(pid)
        self.counts["servers that hung"] += 1

    def _kill_training(self) -> None:
        self._scene.end_training()
        self.counts["kills of the training"] += 1
        self._scene.start_training()

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
            (GRAPHQL, count, {"status": 502}),
            (GRAPHQL, count, {"drop": "before"}),
            (GRAPHQL, count, {"delay": 1}),
            (GRAPHQL, count, {"graphql_errors": "rate limit exceeded"}),
        ]
        match, hits, action = self._random.choice(rules)
        self._scene.server.faults([{"match": match, "count": hits, "action": action}])
        self.counts["faults in the line"] += 1

    def _refuse_key_once(self) -> None:
        """One 401. Two in a row would be what a refused key looks like."""
        if time.monotonic() < self._refused_until:
            return
        self._refused_until = time.monotonic() + 60
        self._scene.server.faults([{"match": GRAPHQL, "count": 1, "action": {"status": 401}}])
        self.counts["single refusals of the key"] += 1

    def _fail_folder(self) -> None:
        """EIO for seconds: everything, what is queued, the proofs, or the newest checkpoint."""
        state = self._scene.output_dir / ".ckptsync"
        newest = max(self._scene.output_dir.glob("checkpoint-*"), key=lambda path: path.name, default=state)
        chosen = self._random.choice((self._scene.output_dir, state, state / "spool", state / "receipts", newest))
        seconds = self._random.uniform(0.5, 10)
        if self._scene.fail(chosen):
            self._lasting.end_after(seconds, self._scene.mend_folder)
            self.counts["folders that failed (EIO)"] += 1

    def _deny_folder(self) -> None:
        seconds = self._random.uniform(0.5, 10)
        if self._scene.deny():
            self._lasting.end_after(seconds, self._scene.mend_folder)
            self.counts["folders that were denied (EACCES)"] += 1

    def _replace_folder(self) -> None:
        if not self._scene.watching:
            return
        self._scene.replace_output_dir()
        self.counts["output folders that were replaced"] += 1

    def _leave_foreign(self) -> None:
        self._scene.leave_foreign()
        self.counts["snapshots of another run"] += 1

    def _add_file(self) -> None:
        """An evaluation's result, or a copy, put into a checkpoint that is durable."""
        durable = {receipt.snapshot.partition(".")[0] for receipt in Spool(self._scene.output_dir, run_id=RUN).receipts}
        folders = sorted(path for path in self._scene.output_dir.glob("checkpoint-*") if path.name in durable)
        chosen = self._random.random()
        if folders:
            with contextlib.suppress(OSError):
                (folders[int(chosen * len(folders))] / ADDED).write_text("{}")
                self.counts["files put into checkpoints"] += 1

    def _turn_clock(self) -> None:
        """The files of a checkpoint get the time of another day."""
        folders = sorted(self._scene.output_dir.glob("checkpoint-*"))
        chosen, seconds = self._random.random(), self._random.choice((-86400, 86400))
        if folders:
            then = time.time() + seconds
            for path in folders[int(chosen * len(folders))].glob("*"):
                with contextlib.suppress(OSError):
                    os.utime(path, (then, then))
            self.counts["checkpoints with another time"] += 1

    def _resume_elsewhere(self) -> None:
        """A resume on another machine gets a complete save, or reports that it could not."""
        into = self._folder / "elsewhere"
        done = self._scene.tool("resume", RUN, "--output-dir", into, "--download-only", timeout=170)
        if done.returncode == 0:
            saves = list(Ledger.read(self._scene.ledger).saves.values())
            placed = dict(evidence.digests(Path(done.stdout.strip())))
            placed.pop(ADDED, None)
            if placed not in saves:
                self.wrong.append(f"resume placed a torn checkpoint: {done.stderr}")
            self.counts["resumes elsewhere"] += 1
        else:
            if done.returncode not in (4, 6):
                self.wrong.append(f"resume exited with {done.returncode}: {done.stderr}")
            self.counts["resumes that could not reach a version"] += 1
        shutil.rmtree(into, ignore_errors=True)

    def _start_watcher(self) -> None:
        self._scene.start_watcher()
        self._first_rss = 0

    def _weigh(self, *, last: bool = False) -> None:
        """Record the watcher's memory: three seconds after its start, and when it ends."""
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self._scene.watcher.pid}/status").read_text().splitlines()
            resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
            age = time.monotonic() - self._scene.born
            if not self._first_rss and age > 3:
                self._first_rss = resident
            if last and self._first_rss:
                self.memory.append((age, self._first_rss, resident))

    def _come_to_rest(self) -> Reckoning:
        self._scene.mend()
        saved = len(Ledger.read(self._scene.ledger).done)
        while len(Ledger.read(self._scene.ledger).done) == saved:
            self._pause(0.5)
        self._scene.server.faults([])
        self._end()
        words = ("watch", self._scene.output_dir, "--run-id", RUN, "--once", "--quiet-period", "0.3")
        done = self._scene.tool(*words, timeout=170)
        if done.returncode != 0:
            self.wrong.append(f"the last pass exited with {done.returncode}: {done.stderr[-1000:]}")
        wait_for(lambda: self._scene.server.request("GET", "/healthz")[0] == 200, what="the server")
        return self._account()

    def _end(self) -> None:
        """End the training, and the watcher after it."""
        self._scene.training.terminate()
        # It may have started too recently to handle the signal yet.
        assert self._scene.training.wait(30) in (0, -signal.SIGTERM)
        self._weigh(last=True)
        self._scene.watcher.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._scene.watcher.wait(60)
        self._scene.end_watcher()

    def _account(self) -> Reckoning:
        ledger = Ledger.read(self._scene.ledger)
        former = sorted(self._scene.former.iterdir(), key=lambda path: int(path.name))
        found = reckon(self._scene.output_dir, former, ledger, self._scene.server)
        found.other += self.wrong
        found.exits += self.exits
        for version in self._random.sample(found.versions, min(SAMPLE, len(found.versions))):
            done = self._scene.tool("verify", f"{RUN}:{version}", "--remote")
            if done.returncode != 0:
                found.torn.append(f"torn: {version}: {done.stderr}")
        found.count()
        found.figures = {**dict(sorted(self.counts.items())), **found.figures, **self._memory_figures()}
        return found

    def _memory_figures(self) -> dict[str, object]:
        if not self.memory:
            return {}
        age, first, last = max(self.memory)
        return {"longest life of a watcher": f"{age:.0f} s", "its memory": f"{first / 1024:.1f} MiB, then {last / 1024:.1f} MiB"}

    def _log_tail(self, count: int) -> str:
        return self._scene.log.read_text()[-count:]

    def _note(self, text: str) -> None:
        """Write what is done into the watcher's log, to be read beside it."""
        with self._scene.log.open("a") as file:
            file.write(f"---- {time.strftime('%H:%M:%S')} {time.monotonic() - self._began:.1f} s: {text}\n")
