"""What the training pays: time inside its loop, its duration while uploads run, and bytes written to disk beyond its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import processes
from tests.bench.bed import Bed, BenchServer, wait_for
from tests.bench.row import Row, compared, judged

MODES = ("none", "ours", "wandb")
SAVES = 3
PER_STEP = ("on_step_begin", "on_step_end", "on_pre_optimizer_step", "on_substep_end", "on_log")


@dataclass(slots=True)
class Trained:
    """The cost of one training. `written` are bytes that the uploader wrote to disk, for each byte of checkpoint."""

    seconds: float
    inside: float
    per_step: float
    written: float
    left: float
    spent: dict[str, Any] = field(default_factory=dict)


def rows(bed: Bed) -> Iterator[Row]:
    """Three saves of 500 MB each, torch on one thread, server and uploads on the same cores. On disk, to count bytes written."""
    found: dict[str, list[Trained]] = {mode: [] for mode in MODES}
    root = bed.folder("training", on_disk=True)
    with BenchServer(bed.folder("training-server") / "data", faults=False) as server:
        for number in range(bed.rounds):
            for mode in MODES:
                found[mode].append(_train(bed, server, root / f"{mode}-{number}", mode, number))
                server.forget()
                shutil.rmtree(root / f"{mode}-{number}")
                bed.say(f"training, {mode}: {found[mode][-1].seconds:.1f} s")
    none, ours, wandb = (found[mode] for mode in MODES)
    seconds = {mode: [each.seconds for each in found[mode]] for mode in MODES}
    yield compared(
        "training", "inside the loop, per checkpoint (on_save, on_train_end)", "WandbCallback",
        [each.inside for each in ours], [each.inside for each in wandb], target=1 / 50,
    )  # fmt: skip
    yield judged("training", "SyncCallback, per step", [each.per_step * 1e3 for each in ours], target=0.1, unit="ms")
    yield compared("training", "train() while uploads run", "no upload", seconds["ours"], seconds["none"], target=1.10)
    yield compared("training", "train() while uploads run", "WandbCallback", seconds["ours"], seconds["wandb"], target=0.70)
    written = [each.written - other.written for each, other in zip(wandb, none, strict=True)]
    yield compared(
        "training", "written to disk per byte of checkpoint", "WandbCallback",
        [each.written for each in ours], written, target=0.005, unit="bytes",
    )  # fmt: skip
    yield judged("training", "left behind per byte of checkpoint", [each.left for each in ours], target=0.005, unit="bytes")


def _train(bed: Bed, server: BenchServer, folder: Path, mode: str, number: int) -> Trained:
    folder.mkdir()
    output_dir = folder / "out"
    output_dir.mkdir()
    run = f"{mode}-{number}"
    hidden, save, step = (128, 4, 0.0) if bed.quick else (1312, 12, 0.0)
    words = [
        "--output-dir",
        str(output_dir),
        "--max-steps",
        str(save * SAVES),
        "--save-steps",
        str(save),
        "--hidden",
        str(hidden),
    ]
    words += ["--step-seconds", str(step), "--batch-size", "2", "--save-total-limit", "3"]
    variables = {name: str(folder / name.lower()) for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    for path in variables.values():
        Path(path).mkdir()
    environment = bed.environment(server, WANDB_RUN_ID=run, PYTHONPATH=str(Path(__file__).parents[2]), **variables)
    command = [sys.executable, "-m", "tests.bench.timed_training", mode, *words]
    if mode != "ours":
        return _run(command, environment, folder, output_dir)
    with bed.watcher(server, output_dir, run, "--backlog", "all") as watcher, processes.sampled(watcher.pid) as sample:
        trained = _run(command, environment, folder, output_dir)
        receipts = output_dir / ".ckptsync" / "receipts"
        wait_for(lambda: len(list(receipts.glob("*.json"))) == SAVES)
        size = trained.spent["bytes"] * SAVES
        wait_for(lambda: not any((output_dir / ".ckptsync" / "spool").iterdir()))
    ours = sum(path.stat().st_size for path in (output_dir / ".ckptsync").rglob("*") if path.is_file())
    trained.written, trained.left = sample.written / size, ours / size
    return trained


def _run(command: list[str], environment: dict[str, str], folder: Path, output_dir: Path) -> Trained:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=log)
        with processes.sampled(process.pid) as sample:
            out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError((folder / "log").read_text()[-3000:])
    told = json.loads(out.splitlines()[-1])
    spent = told["spent"]
    inside = (sum(spent.get("on_save", ())) + sum(spent.get("on_train_end", ()))) / told["saves"]
    steps = [sum(spent.get(event, ())) for event in PER_STEP]
    count = max(len(spent.get("on_step_end", ())), 1)
    shutil.rmtree(folder / "wandb_dir", ignore_errors=True)
    return Trained(told["seconds"], inside, sum(steps) / count, sample.written / told["bytes"] / told["saves"], 0.0, told)
