"""Small checkpoint folders that every check accepts, made in a millisecond and without torch."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ckptsync import layouts
from ckptsync.checkpoint import Checkpoint, step_of


def make_checkpoint(
    output_dir: Path,
    step: int,
    *,
    content: str = "",
    size: int = 64,
    max_steps: int = 1000,
    world_size: int = 1,
    best: str | None = None,
    metrics: Mapping[str, float] | None = None,
    without: Collection[str] = (),
    saved_at: float | None = None,
) -> Path:
    """Write `checkpoint-<step>` as the Trainer does: in place, trainer_state.json last. Again on the same step, it is a re-save.

    `content` makes the bytes differ from those of another save, `size` is the number of weights' bytes, `without` names files to
    leave out, and `saved_at` (seconds since the epoch) sets every file's time.
    """
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    seed = f"{step} {content}"
    ranks = ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    files: dict[str, bytes] = {
        "config.json": json.dumps({"model_type": "llama"}).encode(),
        "model.safetensors": safetensors_bytes(seed, size),
        "training_args.bin": torch_bytes({"output_dir": str(output_dir)}),
        "optimizer.pt": torch_bytes({"state": {}, "seed": seed}, size),
        "scheduler.pt": torch_bytes({"last_epoch": step}),
        **{name: torch_bytes({"rank": name, "seed": seed}) for name in ranks},
        "trainer_state.json": state_bytes(step, max_steps=max_steps, best=best, metrics=metrics or {"loss": 1 / step}),
    }
    for name, value in files.items():
        if name not in without:
            (folder / name).write_bytes(value)
            if saved_at is not None:
                os.utime(folder / name, (saved_at, saved_at))
    return folder


def checkpoint_at(folder: Path) -> Checkpoint:
    """The folder as the value that the watcher makes of it. It has to be whole."""
    verdict = layouts.inspect(folder)
    assert verdict.complete, verdict.problems
    return Checkpoint(folder, step_of(folder.name) or 0, verdict)


def safetensors_bytes(seed: str, size: int = 64) -> bytes:
    """A safetensors file with one tensor of `size` bytes."""
    header = json.dumps({"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + _filled(seed, size)


def torch_bytes(value: Any, size: int = 0) -> bytes:
    """What torch.save writes: a zip of stored members, the pickle in data.pkl."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        # A ZipInfo has no date of today, as in torch: the bytes are the same whenever they are made.
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), pickle.dumps(value, protocol=2))
        archive.writestr(zipfile.ZipInfo("archive/version"), "3\n")
        if size:
            archive.writestr(zipfile.ZipInfo("archive/data/0"), _filled(str(value), size))
    return buffer.getvalue()


def state_bytes(step: int, *, max_steps: int, best: str | None, metrics: Mapping[str, float]) -> bytes:
    """The trainer_state.json of a step."""
    return json.dumps(
        {
            "best_model_checkpoint": best,
            "epoch": step / max_steps,
            "global_step": step,
            "max_steps": max_steps,
            "log_history": [{"epoch": step / max_steps, "step": step, **metrics}],
        },
        indent=2,
    ).encode()


def _filled(seed: str, size: int) -> bytes:
    pattern = seed.encode() + b"\0"
    return (pattern * (size // len(pattern) + 1))[:size]
