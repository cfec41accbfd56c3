"""What runs in a soak: a server, a watcher with its own view of the file system, and a training. All can be killed and upset.

The watcher has its own mount namespace and no capability to override file modes, so that its folder can fail while the training's
does not. Without root, or without the tools for that, those faults are left out.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ckptsync.upload import snapshot
from tests.checkpoints import checkpoint_at, make_checkpoint
from tests.integration.conftest import Tool, descendants, kill_tree
from tests.server_process import ServerProcess
from tests.soak.training import RUN

FOREIGN_RUN = "another"
REPOSITORY = Path(__file__).parents[2]
TOOLS = ("unshare", "nsenter", "setpriv", "mkfs.xfs", "xfs_io")
MAKE_RUN = """mutation UpsertBucket($name: String!) { upsertBucket(input: {name: $name, modelName: "tests", entityName: "local",
    config: "{}"}) { bucket { id } } }"""


class Scene:
    """All processes, in one folder."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.output_dir = folder / "out"
        self.ledger = folder / "ledger.jsonl"
        self.former = folder / "former"
        """Where output folders go that were taken away, with the queue in them."""
        self.server = ServerProcess(folder / "server")
        self.born = 0.0
        self.tool: Tool
        self.watcher: subprocess.Popen[bytes]
        self.training: subprocess.Popen[bytes]
        self._random = chance
        self._stopped: set[int] = set()
        self._mounted: list[Path] = []
        self._broken = folder / "broken"
        self._can_fail = False
        self._said_before = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Everything is up; at the end nothing is."""
        self.output_dir.mkdir()
        self.former.mkdir()
        with self._broken_file_system(), self.server:
            self.server.graphql(MAKE_RUN, name=RUN)
            self.tool = Tool(self.folder / "home", self.server, PYTHONPATH=str(REPOSITORY))
            try:
                self.start_watcher()
                self.start_training()
                yield
            finally:
                self.mend()
                self.end_watcher()
                self.end_training()

    def start_watcher(self) -> None:
        """Start `ckptsync watch`, with one of several policies."""
        self.mend_folder()
        words = (*self.policy(), "--retry-for", "86400")
        self._start([*self._view, *self.tool.command("watch", self.output_dir, *words)])

    def policy(self) -> list[str]:
        """The run, and what its watcher does with a queue: one of several."""
        extra = self._random.choice(([], ["--backlog", "all"], ["--backlog", "all"], ["--spool-limit", "2M"]))
        return ["--run-id", RUN, "--quiet-period", "0.3", "--stall-timeout", "15", *extra]

    def _start(self, command: Sequence[str]) -> None:
        self._said_before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            self.watcher = subprocess.Popen(
                command, env=self.tool.environment, cwd=self.tool.home, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        self.born = time.monotonic()

    def start_training(self) -> None:
        """Start the training that saves at speed."""
        self.training = subprocess.Popen(
            self.training_command(), cwd=REPOSITORY, env=self.tool.environment, stderr=subprocess.DEVNULL
        )

    def training_command(self) -> list[str]:
        """The training, with a seed of its own."""
        seed = str(self._random.randrange(2**31))
        return [sys.executable, "-m", "tests.soak.training", str(self.output_dir), str(self.ledger), seed]

    def end_watcher(self) -> None:
        """SIGKILL to the watcher and all its children."""
        kill_tree(self.watcher.pid)
        self.watcher.wait(30)

    def end_training(self) -> None:
        """SIGKILL to the training."""
        self.training.kill()
        self.training.wait(30)

    def restart_server(self, pause: float) -> None:
        """SIGKILL to the server, and the next one after a pause."""
        self.server.kill()
        time.sleep(pause)
        self.server.start()

    def uploads(self) -> list[int]:
        """The upload processes at this moment."""
        return [pid for pid in descendants(self.watcher.pid) if b"ckptsync.publish" in _command_line(pid)]

    def stop_process(self, pid: int) -> None:
        """SIGSTOP: it accepts what the kernel accepts for it, and never answers."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self._stopped.add(pid)

    def continue_process(self, pid: int) -> None:
        """Undo `stop_process`, if that is still to be done."""
        if pid in self._stopped:
            self._stopped.remove(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def fail(self, path: Path) -> bool:
        """Let every access of the watcher to that folder be an I/O error (EIO) until `mend_folder`. False if impossible."""
        if not self._view or not self.watching or not path.is_dir():
            return False
        done = subprocess.run([*self._enter, "mount", "--bind", str(self._broken), str(path)], capture_output=True)
        if done.returncode == 0:
            self._mounted.append(path)
        return done.returncode == 0

    def deny(self) -> bool:
        """The watcher may not read the output folder (EACCES), until `mend_folder`. False if impossible."""
        possible = bool(self._view) and self.watching
        if possible:
            self.output_dir.chmod(0)
        return possible

    def mend_folder(self) -> None:
        """The file system works again."""
        self.output_dir.chmod(0o755)
        for path in reversed(self._mounted):
            subprocess.run([*self._enter, "umount", "--lazy", str(path)], capture_output=True)
        self._mounted.clear()

    def mend(self) -> None:
        """Undo every fault that lasts."""
        self.mend_folder()
        for pid in list(self._stopped):
            self.continue_process(pid)

    def replace_output_dir(self) -> None:
        """Somebody moves the output folder away, and a new training makes it again."""
        self.end_training()
        self.mend_folder()
        self.output_dir.rename(self.former / str(len(list(self.former.iterdir()))))
        time.sleep(self._random.choice((0.0, 1.0, 4.0)))
        # A watcher that is about to write may have been quicker.
        self.output_dir.mkdir(exist_ok=True)
        self.start_training()

    def leave_foreign(self) -> None:
        """Put what another run left into the queue."""
        step = self._random.randrange(10**6)
        source = make_checkpoint(self.folder / "foreign", step, content=FOREIGN_RUN)
        checkpoint = checkpoint_at(source)
        spool = self.output_dir / ".ckptsync" / "spool"
        with contextlib.suppress(OSError):
            snapshot.pin(checkpoint, spool / f"{checkpoint.name}.{checkpoint.fingerprint}", sequence=10**6, run_id=FOREIGN_RUN)
        shutil.rmtree(self.folder / "foreign")

    @property
    def log(self) -> Path:
        """What the watchers say."""
        return self.folder / "watch.log"

    @property
    def watching(self) -> bool:
        """Whether the watcher has started. A start in a folder that fails, or is not there, may be an error."""
        with self.log.open("rb") as file:
            file.seek(self._said_before)
            return b" watching " in file.read()

    @property
    def _view(self) -> Sequence[str]:
        if not self._can_fail:
            return ()
        namespace = ("unshare", "--mount", "--propagation", "private")
        return (*namespace, "setpriv", "--bounding-set=-dac_override,-dac_read_search")

    @property
    def _enter(self) -> Sequence[str]:
        return ("nsenter", f"--mount=/proc/{self.watcher.pid}/ns/mnt")

    @contextlib.contextmanager
    def _broken_file_system(self) -> Iterator[None]:
        """A mount on which everything is an I/O error: an XFS that was shut down. Every watcher's namespace has it."""
        if os.geteuid() != 0 or any(shutil.which(name) is None for name in TOOLS):
            yield
            return
        image = self.folder / "broken.xfs"
        self._broken.mkdir()
        with image.open("wb") as file:
            file.truncate(400 * 2**20)
        words: list[Sequence[str]] = [
            ("mkfs.xfs", "-q", str(image)),
            ("mount", "-o", "loop", str(image), str(self._broken)),
            ("xfs_io", "-x", "-c", "shutdown", str(self._broken)),
        ]
        self._can_fail = _all_succeed(words)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(self._broken)], capture_output=True)


def _all_succeed(commands: Sequence[Sequence[str]]) -> bool:
    return all(subprocess.run(each, capture_output=True).returncode == 0 for each in commands)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


Undo = Callable[[], None]


class Lasting:
    """Faults that end some time later, while other ones happen."""

    def __init__(self) -> None:
        self._ends: list[tuple[float, Undo]] = []

    def end_after(self, seconds: float, undo: Undo) -> None:
        """Undo it when so much time has gone by."""
        self._ends.append((time.monotonic() + seconds, undo))

    def end_due(self) -> None:
        """Undo what has lasted long enough."""
        due = [undo for at, undo in self._ends if at <= time.monotonic()]
        self._ends = [each for each in self._ends if each[0] > time.monotonic() and each[1] not in due]
        for undo in due:
            undo()
