"""From a complete checkpoint to a committed version: 2 GB in three large files and some small ones."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench import minimal
from tests.bench.bed import Bed, BenchServer, Helper, Md5Server, wait_for
from tests.bench.payload import LARGE, Payload
from tests.bench.rounds import MEMORY, interleaved, timed
from tests.bench.row import Row, compared

RUN = "speed"


def rows(bed: Bed) -> Iterator[Row]:
    """With XXH128, which the embedded server offers, and with MD5, which may be all that W&B's own service accepts."""
    yield from _rows(bed, BenchServer, "")
    yield from _rows(bed, Md5Server, ", MD5 only")


def _rows(bed: Bed, kind: type[BenchServer], note: str) -> Iterator[Row]:
    root = bed.folder("outward")
    payload = Payload(root / "out", {name: size // 10 if bed.quick else size for name, size in LARGE.items()})
    payload.make()
    with kind(root / "data", faults=False) as server, bed.watcher(server, payload.output_dir, RUN, "--quiet-period", "1h"):
        helper = Helper(bed.environment(server, WANDB_DIR=str(root), WANDB_CACHE_DIR=str(root / "cache"),
                                        WANDB_DATA_DIR=str(root / "staging")), root)  # fmt: skip
        ours(payload, server)
        found = interleaved(
            {
                "ours": lambda: ours(payload, server),
                "minimal": lambda: _minimal(payload, server),
                "wandb": lambda: _wandb(payload, server, helper, root),
            },
            bed.rounds,
            memory=MEMORY,
        )
        helper.close()
    shutil.rmtree(root)
    what = f"complete to committed, {payload_size(payload.sizes)}{note}"
    yield compared("outward", what, "md5 on one thread + one PUT", found["ours"], found["minimal"], target=1.10)
    yield compared("outward", what, "wandb add_dir + log_artifact", found["ours"], found["wandb"], target=0.6)


def payload_size(sizes: dict[str, int]) -> str:
    """The size, for a label."""
    return f"{sum(sizes.values()) / 1000:g} GB"


def ours(payload: Payload, server: BenchServer, *, keep: bool = False) -> float:
    """Time from the callback's marker to the receipt, with the watcher already running, as beside a training."""
    payload.renew()
    receipts = payload.output_dir / ".ckptsync" / "receipts"
    started = time.perf_counter()
    payload.complete()
    wait_for(lambda: any(receipts.glob(f"checkpoint-{payload.step}.*.json")))
    seconds = time.perf_counter() - started
    if not keep:
        server.forget()
    return seconds


def _minimal(payload: Payload, server: BenchServer) -> float:
    payload.renew()
    seconds = timed(lambda: minimal.put(server, payload.large(), minimal.md5(payload.large())))
    server.forget()
    return seconds


def _wandb(payload: Payload, server: BenchServer, helper: Helper, root: Path) -> float:
    payload.renew()
    seconds = float(helper.ask(op="log", folder=str(payload.folder), run="theirs", name="theirs"))
    server.forget()
    for folder in ("cache", "staging"):
        shutil.rmtree(root / folder, ignore_errors=True)
    return seconds
