"""How the cost grows: of a checkpoint beside 10, 100 and 1,000 versions; of a file in a checkpoint of 1, 100 and 10,000 files."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ckptsync.trainer import marker
from tests import checkpoints
from tests.bench.bed import Bed, BenchServer, wait_for
from tests.bench.row import Row, judged

VERSIONS = (10, 100, 1000)
FILES = (1, 100, 10_000)
RUN = "growing"


def rows(bed: Bed) -> Iterator[Row]:
    """The exponent fitted to the total cost, and the cost of one more at each size."""
    yield from _versions(bed)
    yield from _files(bed)


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """e of cost = c * size ** e, by least squares over the logarithms: 1 if each costs as much as the one before."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs]).slope


def _versions(bed: Bed) -> Iterator[Row]:
    sizes = VERSIONS[:2] if bed.quick else VERSIONS
    root = bed.folder("versions")
    output_dir = root / "out"
    output_dir.mkdir()
    each: list[float] = []
    with bed.server() as server, _watching(bed, server, output_dir):
        for step in range(1, max(sizes) + 1):
            folder = checkpoints.make_checkpoint(output_dir, step, max_steps=10**6)
            each.append(_durable_after(output_dir, step))
            shutil.rmtree(folder)
    shutil.rmtree(root)
    totals = [sum(each[:size]) for size in sizes]
    for size in sizes:
        yield judged("growing", f"one more checkpoint beside {size} versions", each[size - 10 : size], target=None, unit="s")
    words = ", ".join(map(str, sizes))
    yield judged("growing", f"exponent over {words} versions", [exponent(sizes, totals)], target=1.1, unit="")


def _files(bed: Bed) -> Iterator[Row]:
    sizes = FILES[:2] if bed.quick else FILES
    found: dict[int, tuple[float, float]] = {}
    for size in sizes:
        root = bed.folder("files")
        output_dir = root / "out"
        folder = checkpoints.make_checkpoint(output_dir, 1, max_steps=10**6)
        few = len(list(folder.iterdir()))
        for number in range(size - 1):
            (folder / f"extra-{number:05d}.txt").write_text(f"{number}")
        state = checkpoints.state_bytes(1, max_steps=10**6, best=None, metrics={"loss": 1.0})
        (folder / "trainer_state.json").write_bytes(state)
        with bed.server() as server:
            with _watching(bed, server, output_dir):
                out = _durable_after(output_dir, 1)
            started = time.perf_counter()
            bed.ckptsync(server, "pull", RUN, root / "pulled")
            found[size + few - 1] = (out, time.perf_counter() - started)
        shutil.rmtree(root)
    for direction, name in enumerate(("out", "in")):
        costs = [pair[direction] for pair in found.values()]
        for size, cost in zip(found, costs, strict=True):
            yield judged("growing", f"{size} files {name}, per file", [1e3 * cost / size], target=None, unit="ms")
        yield judged("growing", f"exponent over the number of files, {name}", [exponent(list(found), costs)], target=1.1, unit="")


def _watching(bed: Bed, server: BenchServer, output_dir: Path) -> AbstractContextManager[object]:
    return bed.watcher(server, output_dir, RUN, "--quiet-period", "1h", "--backlog", "all")


def _durable_after(output_dir: Path, step: int) -> float:
    receipts = output_dir / ".ckptsync" / "receipts"
    started = time.perf_counter()
    marker.write(output_dir, step, world_size=1)
    wait_for(lambda: any(receipts.glob(f"checkpoint-{step}.*.json")), every=0.01)
    return time.perf_counter() - started
