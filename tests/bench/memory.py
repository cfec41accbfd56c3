"""Memory of the watcher and its children during an upload of 4 GB, and of a pull of 4 GB."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from tests.bench import outward, processes
from tests.bench.bed import Bed, BenchServer, command
from tests.bench.payload import LARGE, Payload
from tests.bench.row import Row, judged

TARGET = 250.0


def rows(bed: Bed) -> Iterator[Row]:
    """The peak of the processes' own memory (RssAnon). Pages of mapped files belong to the disk cache."""
    root = bed.folder("memory")
    peaks: dict[str, list[float]] = {"out": [], "in": []}
    factor = 0.1 if bed.quick else 2.0
    payload = Payload(root / "out", {name: int(size * factor) for name, size in LARGE.items()})
    payload.make()
    with (
        BenchServer(root / "data", faults=False) as server,
        bed.watcher(server, payload.output_dir, outward.RUN, "--quiet-period", "1h") as watcher,
    ):
        for _ in range(min(bed.rounds, 3)):
            with processes.sampled(watcher.pid) as sample:
                outward.ours(payload, server, keep=True)
            peaks["out"].append(sample.peak)
            words = command("pull", outward.RUN, root / "pulled")
            process = subprocess.Popen(words, env=bed.environment(server), stdout=subprocess.DEVNULL)
            with processes.sampled(process.pid) as sample:
                if process.wait():
                    raise RuntimeError("pull failed")
            peaks["in"].append(sample.peak)
            shutil.rmtree(root / "pulled")
            server.forget()
    shutil.rmtree(root)
    size = outward.payload_size(payload.sizes)
    yield judged("memory", f"watcher, child and wandb-core, {size} out", peaks["out"], target=TARGET, unit="MB")
    yield judged("memory", f"pull with wandb-core, {size} in", peaks["in"], target=TARGET, unit="MB")
