"""The name, aliases and metadata of the artifact that a snapshot becomes. No wandb and no network."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import PurePath
from typing import Any

from ckptsync.checkpoint import Rows, Run, Snapshot, Version, step_of
from ckptsync.layouts.final_model import Model
from ckptsync.record import Record
from ckptsync.secret_detection import recordable
from ckptsync.store.contract import Upload

NAME_LENGTH = 128
"""The longest artifact name that W&B accepts (wandb 0.31, measured)."""

OWN_ALIAS = re.compile(r"latest|best|final|preempted|step-\d+|epoch_[\d.]+|checkpoint_global_step_\d+|final_model|base_model")
"""Aliases that ckptsync, the wandb client or HF's WandbCallback gives. All others are a user's."""

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "deepspeed", "trl", "safetensors", "wandb")


def artifact_name(stem: str, *, kind: str = "checkpoint") -> str:
    """`checkpoint-<run_id>`, with `-` for each character that W&B allows in a run id but not in an artifact's name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{kind}-{stem}")[:NAME_LENGTH]


KINDS = ("checkpoint", "model")
"""The prefixes of artifact names: ckptsync's, and those of HF's WandbCallback, which calls checkpoints `model-` as well."""


def candidate_names(stem: str) -> tuple[str, ...]:
    """The artifact names of a run's checkpoints and final model, named after the run's id or its name."""
    return tuple(artifact_name(stem, kind=kind) for kind in KINDS)


def is_candidate(name: str) -> bool:
    """Whether an artifact among a run's outputs may hold a checkpoint or the final model."""
    return name.startswith(tuple(f"{kind}-" for kind in KINDS))


def describe(snapshot: Snapshot, run: Run, record: Record, *, stem: str, preempted: bool = False) -> Upload:
    """The upload that a snapshot becomes. `latest` is not listed: the client adds it to whatever it logs."""
    aliases = [f"step-{snapshot.step}"]
    state = snapshot.state
    if is_best(snapshot):
        aliases.append("best")
    if state and state.finished:
        aliases.append("final")
    if preempted:
        aliases.append("preempted")
    return Upload(artifact_name(stem), tuple(aliases), _metadata(snapshot, run, record))


def describe_model(model: Model, run: Run, *, stem: str) -> Upload:
    """The upload that a final model becomes. It isn't resumable, and its metadata says so."""
    ours = {
        "version": 1,
        "kind": "model",
        "run": run.run_id,
        "step": model.step,
        "saved_at": max(file.mtime_ns for file in model.files) / 1e9,
        "resumable": False,
        "files": len(model.files),
        "bytes": model.bytes,
        "best": model.step if model.best else None,
        "libraries": libraries(),
    }
    aliases = ("final", "best") if model.best else ("final",)
    metadata = {"global_step": model.step, "ckptsync": {key: value for key, value in ours.items() if value is not None}}
    return Upload(artifact_name(stem, kind="model"), (*aliases, f"step-{model.step}"), metadata)


def is_best(snapshot: Snapshot) -> bool:
    """Whether this checkpoint is the Trainer's best so far."""
    best = snapshot.state.best_checkpoint if snapshot.state else None
    return best is not None and PurePath(best).name == snapshot.checkpoint


def best_step(snapshot: Snapshot) -> int | None:
    """The step of the Trainer's best checkpoint so far."""
    best = snapshot.state.best_checkpoint if snapshot.state else None
    return step_of(PurePath(best).name) if best else None


def users_aliases(version: Version) -> list[str]:
    """The aliases of a version that a person gave it."""
    return [alias for alias in version.aliases if not OWN_ALIAS.fullmatch(alias)]


def recorded_command(version: Version) -> list[str] | None:
    """The training's command in a version's metadata: untrusted, so it needs consent before it runs."""
    command = version.ours.get("command")
    return command if isinstance(command, list) and command and all(isinstance(word, str) for word in command) else None


def _metadata(snapshot: Snapshot, run: Run, record: Record) -> dict[str, Any]:
    state = snapshot.state
    rows = state.rows if state else Rows()
    command, started_in = record.command, record.text("started_in")
    ours = {
        "version": 1,
        "run": run.run_id,
        "step": snapshot.step,
        "saved_at": snapshot.saved_at,
        "attempt": snapshot.attempt,
        "rows": rows.count or None,
        "rows_from": rows.start,
        "rows_digest": rows.digest or None,
        "state_digest": state.digest if state and state.digest else None,
        "layout": snapshot.layout,
        "world_size": snapshot.world_size or record.world_size,
        "resumable": snapshot.resumable,
        "files": len(snapshot.files),
        "bytes": snapshot.bytes,
        "fingerprint": snapshot.fingerprint,
        "libraries": libraries(),
        "host": os.uname().nodename,
        "output_dir": str(snapshot.directory.parent.parent.parent),
        "best": best_step(snapshot),
        "command": command if command and recordable(command) and record.may_record_command else None,
        "cwd": record.text("cwd"),
        # Where the program's own wandb.init names another project, this is where the next machine looks first.
        "started_in": started_in if started_in != run.project else None,
    }
    metrics: Mapping[str, float] = state.metrics if state else {}
    return {
        "global_step": snapshot.step,
        **({"epoch": state.epoch} if state and state.epoch is not None else {}),
        # W&B refuses NaN and infinity, and more than 100 keys.
        **{key: value for key, value in list(metrics.items())[:90] if math.isfinite(value)},
        "ckptsync": {key: value for key, value in ours.items() if value is not None},
    }


@cache
def libraries() -> dict[str, str]:
    """The versions of the training's libraries, read from the installed packages' metadata without importing any."""
    from importlib import metadata as installed

    found = {}
    for name in LIBRARIES:
        try:
            found[name] = installed.version(name)
        except installed.PackageNotFoundError:
            continue
    return found
