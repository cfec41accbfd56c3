"""The soak of `ckptsync run`: the machine, ckptsync or the training is lost, the job is preempted, or goes on elsewhere.

Each start of the training has to go on from the newest save that there is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests import evidence
from tests.integration.conftest import kill_tree
from tests.soak.reckoning import ADDED, Reckoning
from tests.soak.scene import Scene
from tests.soak.soak import Soak
from tests.soak.training import RUN, Ledger

PREEMPTED = 75
KILLED = {-signal.SIGKILL, 128 + signal.SIGKILL}


class JobScene(Scene):
    """`ckptsync run` is the watcher, and the training is its child, or an orphan that the next one finds."""

    def start_watcher(self) -> None:
        """Start the same job again."""
        restarts = self._random.choice(("0", "3"))
        words = ("run", "--output-dir", str(self.output_dir), "--notice", "none", "--max-restarts", restarts, *self.policy())
        self._start(self.tool.command(*words, "--", *self.training_command()))

    def start_training(self) -> None:
        """The job does."""

    def trainers(self) -> list[int]:
        """The training processes of this soak."""
        ours = str(self.ledger).encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if b"tests.soak.training" in words and ours in words and b"run" not in words:
                    found.append(int(path.parent.name))
        return found

    def end_training(self) -> None:
        """SIGKILL to the training."""
        for pid in self.trainers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end_watcher(self) -> None:
        """Lose the machine."""
        kill_tree(self.watcher.pid)
        self.watcher.wait(30)
        self.end_training()

    def replace_output_dir(self) -> None:
        """The next start is on another machine, without this folder."""
        self.output_dir.rename(self.former / str(len(list(self.former.iterdir()))))
        self.output_dir.mkdir()


class JobSoak(Soak):
    """As the soak of `watch`, without faults of the folder: the training would share them."""

    scene = JobScene
    pauses = (1.0, 20.0)

    def __init__(self, folder: Path, seed: int, *, calm: float = 0.0) -> None:
        super().__init__(folder, seed, calm=calm)
        self._elsewhere: dict[int, evidence.Digests] = {}
        self._killed = False

    def _blows(self) -> list[tuple[int, Callable[[], None]]]:
        return [
            (4, self._kill_watcher),
            (3, self._orphan_upload),
            (4, self._kill_training),
            (4, self._preempt),
            (2, self._move_on),
            (4, self._kill_upload),
            (3, self._hang_upload),
            (3, self._kill_server),
            (3, self._hang_server),
            (6, self._break_line),
            (3, self._refuse_key_once),
            (2, self._leave_foreign),
            (4, self._add_file),
            (4, self._turn_clock),
        ]

    def _revive(self) -> None:
        code = self._scene.watcher.poll()
        if code is None:
            return
        self.counts[f"jobs that ended with {code}"] += 1
        if not (self._killed and code in KILLED):
            self.wrong.append(f"the job ended by itself with {code}: {self._log_tail(400)}")
        self._killed = False
        self._start_watcher()

    def _kill_training(self) -> None:
        self._killed = True
        self._scene.end_training()
        self.counts["kills of the training"] += 1

    def _preempt(self) -> None:
        """SIGTERM to the job. 75 has to mean that its last save is durable."""
        self._scene.watcher.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._scene.watcher.wait(self._random.choice((1.0, 40.0)))
            self.counts[f"preempted jobs that ended with {code}"] += 1
            if code == 0:
                self.wrong.append(f"a preempted job ended with 0: {self._log_tail(400)}")
            if code == PREEMPTED:
                self._check_exit()
        self._scene.end_watcher()
        self._start_watcher()

    def _move_on(self) -> None:
        """The machine is lost with its disk: the job goes on from the store."""
        self._scene.end_watcher()
        self._scene.mend()
        self._scene.server.faults([])
        versions = evidence.versions(self._scene.server, f"checkpoint-{RUN}")
        # None has `latest` where its holder changed during the upload and was deleted again.
        newest = next((each for each in versions if "latest" in each.aliases), versions[-1] if versions else None)
        self._elsewhere[len(Ledger.read(self._scene.ledger).saves)] = newest.files if newest else {}
        self._scene.replace_output_dir()
        self.counts["machines lost with their disk"] += 1
        self._start_watcher()

    def _end(self) -> None:
        self._scene.watcher.terminate()
        code = self._scene.watcher.wait(120)
        if code != PREEMPTED:
            self.wrong.append(f"the last job ended with {code}: {self._log_tail(400)}")
        self._check_exit()

    def _account(self) -> Reckoning:
        found = super()._account()
        ledger = Ledger.read(self._scene.ledger)
        for begun, given in ledger.starts:
            if _without_added(given) not in self._allowed(ledger, begun):
                found.other.append(
                    f"after {begun} saves the training was given something else than the newest: {_names(ledger, given)}"
                )
        found.count()
        found.figures["starts of the training"] = len(ledger.starts)
        return found

    def _allowed(self, ledger: Ledger, begun: int) -> list[evidence.Digests]:
        """What a start after so many saves may go on from: the last finished one, or one after it that was complete already."""
        moved = max((number for number in self._elsewhere if number <= begun), default=0)
        names = list(ledger.saves)[moved:begun]
        finished = max((number for number, name in enumerate(names) if name in set(ledger.done)), default=None)
        if finished is None:
            return [_without_added(self._elsewhere.get(moved, {})), *(ledger.saves[name] for name in names)]
        return [ledger.saves[name] for name in names[finished:]]


def _without_added(files: evidence.Digests) -> evidence.Digests:
    return {path: digest for path, digest in files.items() if path != ADDED}


def _names(ledger: Ledger, given: evidence.Digests) -> list[str]:
    return [name for name, files in ledger.saves.items() if files == _without_added(given)]
