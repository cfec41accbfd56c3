"""An upload on a busy machine: how long a reader of the data set waits, and what the disk cache holds afterwards."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.bench import outward
from tests.bench.bed import Bed, BenchServer
from tests.bench.payload import LARGE, Payload
from tests.bench.row import Row, judged

BLOCK = 64 * 1024
DATA = 500
"""MB of data set."""


def rows(bed: Bed) -> Iterator[Row]:
    """With uploads at the lowest priority, as by default, and with --no-nice. On disk: files in memory have no cache."""
    waits: dict[str, list[float]] = {"": [], "--no-nice": []}
    alone, missing, left = [], [], []
    root = bed.folder("sharing", on_disk=True)
    data = root / "data-set"
    with data.open("wb") as file:
        for _ in range(DATA):
            file.write(os.urandom(10**6))
    with ExitStack() as stack:
        places = {option: _place(bed, stack, root, option) for option in waits}
        for _ in range(bed.rounds):
            os.sync()
            cached(data, read=True)
            alone.append(_reader(data, lambda: time.sleep(2)))
            for option, (payload, server) in places.items():
                os.sync()
                waits[option].append(_reader(data, lambda: outward.ours(*places[option])))  # noqa: B023 - called at once
                if not option:
                    missing.append(1 - cached(data) / data.stat().st_size)
                    left.append(sum(map(cached, payload.large())) / sum(path.stat().st_size for path in payload.large()))
                server.forget()
        size = outward.payload_size(payload.sizes)
    shutil.rmtree(root)
    what = "p99 of a 64 KiB read of the data set"
    yield judged("sharing", f"{what}, no upload", [each * 1e3 for each in alone], target=None, unit="ms")
    for option, found in waits.items():
        note = f" with {option}" if option else ""
        yield judged("sharing", f"{what}, {size} going out{note}", [each * 1e3 for each in found], target=None, unit="ms")
    yield judged(
        "sharing", "data set no longer in the disk cache after an upload", [100 * each for each in missing], target=1, unit="%"
    )
    yield judged("sharing", "checkpoint in the disk cache after its upload", [100 * each for each in left], target=1, unit="%")


def _place(bed: Bed, stack: ExitStack, root: Path, option: str) -> tuple[Payload, BenchServer]:
    """A watcher with a folder and a server of its own, warmed up."""
    payload = Payload(root / f"out{option}", {name: size // 10 if bed.quick else size // 2 for name, size in LARGE.items()})
    payload.make()
    server = stack.enter_context(BenchServer(bed.folder("sharing-server") / "data", faults=False))
    words = ["--quiet-period", "1h", *([option] if option else [])]
    stack.enter_context(bed.watcher(server, payload.output_dir, outward.RUN, *words))
    outward.ours(payload, server)
    return payload, server


def _reader(data: Path, meanwhile: object) -> float:
    """The 99th percentile of one reader's waits during other work, in seconds."""
    assert callable(meanwhile)
    over = threading.Event()
    waits: list[float] = []

    def read() -> None:
        generator = random.Random(1)
        blocks = data.stat().st_size // BLOCK
        with data.open("rb", buffering=0) as file:
            while not over.is_set():
                started = time.perf_counter()
                os.pread(file.fileno(), BLOCK, generator.randrange(blocks) * BLOCK)
                waits.append(time.perf_counter() - started)
                time.sleep(0.001)

    thread = threading.Thread(target=read)
    thread.start()
    meanwhile()
    over.set()
    thread.join()
    return statistics.quantiles(waits, n=100)[98]


def cached(path: Path, *, read: bool = False) -> int:
    """Bytes of a file in the disk cache, according to fincore (util-linux); with `read`, all of them are read first."""
    if read:
        with path.open("rb") as file:
            while file.read(2**22):
                pass
    with suppress(FileNotFoundError):
        done = subprocess.run(["fincore", "--bytes", "--noheadings", "--output", "RES", path], capture_output=True, check=True)
        return int(done.stdout.split()[0])
    return 0
