"""A real training in a process of its own: `python -m tests.bench.timed_training MODE …`, its times as JSON on the last line.

MODE is none (no upload), wandb (HF's WandbCallback with WANDB_LOG_MODEL=checkpoint) or ours (SyncCallback; a watcher runs
beside it). Everything else is ckptsync.trainer.tiny's command line.
"""

from __future__ import annotations

import collections
import functools
import json
import sys
import time
from typing import Any

EVENTS = ("on_step_begin", "on_step_end", "on_pre_optimizer_step", "on_substep_end", "on_save", "on_train_end", "on_train_begin",
          "on_log", "on_evaluate")  # fmt: skip


def main() -> int:
    """Train, and print the seconds of train() and those inside the uploading callback, by event."""
    mode, *arguments = sys.argv[1:]
    from ckptsync.trainer import tiny

    options = tiny.parse(arguments)
    import os

    os.environ |= {"WANDB_CONSOLE": "off", "WANDB_SILENT": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
    os.environ["WANDB_LOG_MODEL"] = "checkpoint" if mode == "wandb" else "false"
    import torch

    torch.set_num_threads(1)
    trainer = tiny.build(options)
    spent: dict[str, list[float]] = collections.defaultdict(list)
    if mode == "ours":
        from ckptsync.trainer.callback import SyncCallback

        trainer.add_callback(SyncCallback())
    name = {"ours": "SyncCallback", "wandb": "WandbCallback"}.get(mode)
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ == name:
            for event in EVENTS:
                setattr(callback, event, _timed(getattr(callback, event), spent[event]))
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    saves = options.max_steps // options.save_steps
    size = sum(path.stat().st_size for path in _last(options.output_dir).iterdir())
    print(json.dumps({"seconds": seconds, "saves": saves, "bytes": size, "spent": spent}))
    return 0


def _last(output_dir: str) -> Any:
    from pathlib import Path

    return max(Path(output_dir).glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)


def _timed(method: Any, into: list[float]) -> Any:
    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            into.append(time.perf_counter() - started)

    return wrapper


if __name__ == "__main__":
    raise SystemExit(main())
