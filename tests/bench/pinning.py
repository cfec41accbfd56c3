"""From the end of a save to a durable pin, with the callback's marker and without it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ckptsync.trainer import marker
from tests import checkpoints
from tests.bench.bed import Bed, wait_for
from tests.bench.row import Row, judged

QUIET = 3.0


def rows(bed: Bed) -> Iterator[Row]:
    """Ten small checkpoints each way; times are those of the events in history.jsonl."""
    root = bed.folder("pinning")
    output_dir = root / "out"
    output_dir.mkdir()
    told, rested = [], []
    with bed.server() as server, bed.watcher(server, output_dir, "pins", "--quiet-period", f"{QUIET:g}s", "--backlog", "all"):
        for number in range(1, 2 * bed.rounds + 1):
            told.append(_pinned_after(output_dir, number * 10, told=True))
            rested.append(_pinned_after(output_dir, number * 10 + 5, told=False))
    shutil.rmtree(root)
    yield judged("pinning", "save over to pinned, with the callback's marker", told, target=0.05, unit="s")
    yield judged("pinning", f"save over to pinned, without it (quiet period {QUIET:g} s)", rested, target=QUIET + 0.5, unit="s")


def _pinned_after(output_dir: Path, step: int, *, told: bool) -> float:
    checkpoints.make_checkpoint(output_dir, step, size=10**6, max_steps=10**6)
    over = time.time()
    if told:
        marker.write(output_dir, step, world_size=1)
    at: list[float] = []

    def pinned() -> bool:
        lines = (output_dir / ".ckptsync" / "history.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        at.extend(each["time"] for each in events if each["event"] == "pinned" and each["step"] == step)
        return bool(at)

    wait_for(lambda: (output_dir / ".ckptsync" / "history.jsonl").exists() and pinned(), seconds=60, every=0.02)
    return at[0] - over
