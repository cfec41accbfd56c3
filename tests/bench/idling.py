"""An idle watcher: memory, processor time, and how soon it is ready with many old folders."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests import checkpoints
from tests.bench import processes
from tests.bench.bed import Bed, BenchServer, command
from tests.bench.row import Row, judged

OLD = 5000


def rows(bed: Bed) -> Iterator[Row]:
    """One folder with 3 checkpoints, one with 5,000, and an hour's scans in quick succession."""
    yield from _watched(bed, 3)
    yield from _watched(bed, OLD // 10 if bed.quick else OLD)
    yield _hour(bed)


def _watched(bed: Bed, count: int) -> Iterator[Row]:
    root = bed.folder("idling")
    output_dir = root / "out"
    _fill(output_dir, count)
    seconds = 5.0 if bed.quick else 30.0
    with bed.server() as server:
        # Everything there is durable or dropped beforehand; the next start is what is measured.
        bed.ckptsync(server, "watch", output_dir, "--run-id", "idle", "--once", "--backlog", "newest", "--notice", "none")
        started, process = _start(bed, server, output_dir, root)
        try:
            # After the quiet period, the work of the first scan is over.
            time.sleep(8)
            before = processes.seconds(process.pid)
            time.sleep(seconds)
            share = 100 * (processes.seconds(process.pid) - before) / seconds
            memory = processes.memory(process.pid)
        finally:
            process.terminate()
            process.wait(30)
    shutil.rmtree(root)
    what = f"watcher, {count} checkpoints"
    yield judged("idling", f"{what}: ready after", [started], target=2.0, unit="s")
    yield judged("idling", f"{what}: memory (RSS)", [memory], target=36.0, unit="MB")
    yield judged("idling", f"{what}: processor, of one core", [share], target=0.2, unit="%")


def _fill(output_dir: Path, count: int) -> None:
    old = time.time() - 10**6
    first = checkpoints.make_checkpoint(output_dir, 1, max_steps=10**6, saved_at=old + 1)
    for step in range(2, count + 1):
        folder = output_dir / f"checkpoint-{step}"
        folder.mkdir()
        for path in first.iterdir():
            if path.name != "trainer_state.json":
                os.link(path, folder / path.name)
        state = checkpoints.state_bytes(step, max_steps=10**6, best=None, metrics={"loss": 1.0})
        (folder / "trainer_state.json").write_bytes(state)
        for path in folder.iterdir():
            os.utime(path, (old + step, old + step))


def _start(bed: Bed, server: BenchServer, output_dir: Path, root: Path) -> tuple[float, subprocess.Popen[bytes]]:
    """The watcher, and the seconds until it notified its service manager that it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(root / "notify"))
        manager.settimeout(60)
        begun = time.perf_counter()
        process = subprocess.Popen(
            command("watch", output_dir, "--run-id", "idle", "--notice", "none", "--backlog", "newest", "-q"),
            env=bed.environment(server, NOTIFY_SOCKET=str(root / "notify")),
        )
        while b"READY=1" not in manager.recv(4096):
            pass
        return time.perf_counter() - begun, process


_HOUR = """
import sys, time
from pathlib import Path
from ckptsync.upload.quiet_period import QuietPeriod
from tests.bench import processes
import os
now = 0.0
settling = QuietPeriod(Path(sys.argv[1]), Path(sys.argv[1]) / ".ckptsync/complete", quiet=3.0, clock=lambda: now)
def look():
    global now
    now += 2.0
    for rested in settling.scan():
        settling.accept(rested)
for _ in range(100):
    look()
before = processes.memory(os.getpid())
for _ in range(1800):
    look()
print(processes.memory(os.getpid()) - before)
"""


def _hour(bed: Bed) -> Row:
    root = bed.folder("hour")
    _fill(root / "out", 100)
    environment = {**bed.environment(), "PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "-c", _HOUR, str(root / "out")]
    grown = [float(subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    shutil.rmtree(root)
    return judged("idling", "growth over an hour's scans, 100 folders", grown, target=0.5, unit="MB")
