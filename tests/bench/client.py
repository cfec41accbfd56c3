"""The wandb client in a process of its own: `python -m tests.bench.client`, one JSON job per line, one answer each.

Times are taken inside the process, so that they exclude interpreter start and imports, which a training pays anyway.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> int:
    """Serve jobs until stdin ends."""
    jobs: dict[str, Callable[..., Any]] = {"log": log, "fetch": fetch, "versions": versions, "shape": shape}
    for line in sys.stdin:
        job = json.loads(line)
        answer = jobs[job.pop("op")](**job)
        sys.stdout.write(f"answer {json.dumps(answer)}\n")
        sys.stdout.flush()
    if _state:
        import wandb

        wandb.teardown()
    return 0


_state: dict[str, Any] = {}


def log(folder: str, run: str, name: str) -> float:
    """Seconds for what WandbCallback does with a checkpoint: add_dir, log_artifact, wait."""
    import wandb

    if "run" not in _state:
        _state["run"] = wandb.init(id=run, settings=wandb.Settings(silent=True, console="off"))
    started = time.perf_counter()
    artifact = wandb.Artifact(name, type="model")
    artifact.add_dir(folder)
    _state["run"].log_artifact(artifact).wait()
    return time.perf_counter() - started


def _store(private: str) -> Any:
    if "store" not in _state:
        from ckptsync import config
        from ckptsync.checkpoint import Run
        from ckptsync.store.wandb_store import WandbStore

        run = Run("speed", os.environ["WANDB_PROJECT"])
        _state["store"] = WandbStore(config.connection(), run, Path(private))
        _state["store"].check(run)
    return _state["store"]


def fetch(name: str, into: str, private: str, keep: list[str]) -> float:
    """Seconds for our fetch of the newest version into a folder that keeps the files `keep` of the last one."""
    store = _store(private)
    target = Path(into)
    if not keep:
        shutil.rmtree(target, ignore_errors=True)
    target.mkdir(exist_ok=True)
    for path in target.iterdir():
        if path.name not in keep:
            path.unlink()
    version = store.versions(name)[0]
    started = time.perf_counter()
    store.fetch(version, target, progress=lambda _done, _total: None)
    return time.perf_counter() - started


def versions(name: str, private: str) -> list[float]:
    """The number of versions, and the seconds to list them."""
    store = _store(private)
    started = time.perf_counter()
    found = store.versions(name)
    return [len(found), time.perf_counter() - started]


def shape(name: str, private: str) -> dict[str, list[Any]]:
    """File → (algorithm, hex digest, size), in the newest version."""
    import base64

    store = _store(private)
    artifact = store._client.api().artifact(store.versions(name)[0].qualified)
    return {
        path: [str(entry.digest_algorithm().value), base64.b64decode(entry.digest).hex(), entry.size]
        for path, entry in artifact.manifest.entries.items()
    }


if __name__ == "__main__":
    raise SystemExit(main())
