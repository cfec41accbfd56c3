"""Which checkpoint to resume from: the local ones and the versions, best first. Reads, and changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ckptsync import layouts, record
from ckptsync.checkpoint import Checkpoint, Run, Version, step_of
from ckptsync.errors import NotFoundError
from ckptsync.store import artifact
from ckptsync.store.contract import Store
from ckptsync.upload import lineage
from ckptsync.upload.spool import Spool


@dataclass(frozen=True, slots=True)
class Source:
    """One place to resume from: a local folder, or a version in the store.

    With both, the folder was uploaded as the version, or downloaded from it.
    """

    saved_at: float
    step: int
    local: Checkpoint | None = None
    version: Version | None = None

    def __str__(self) -> str:
        return (
            f"local {self.local.name}" if self.local else f"{self.version.name}:{self.version.version}" if self.version else "?"
        )


def order(local: Iterable[Checkpoint], versions: Iterable[Version]) -> list[Source]:
    """The sources, best first: the one saved last, by (saved time, step); of equals the local one.

    A version whose metadata says that it isn't resumable (no optimizer, scheduler or rng state) is left out, and so is the
    final model that HF's WandbCallback logs under the same name (alias `final_model`, transformers 5.24).
    """
    there = [
        Source(saved_at, each.step if each.step is not None else -1, version=each)
        for each, saved_at in _dated(versions)
        if each.ours.get("resumable", True) is not False and "final_model" not in each.aliases
    ]
    twins = {_moment(each): each.version for each in there}
    found = [Source(each.saved_at, each.step, local=each) for each in local if each.verdict.resumable]
    here = [replace(each, version=twins.get(_moment(each))) for each in found]
    return sorted(here + there, key=lambda each: (*_moment(each), each.local is not None), reverse=True)


def _moment(source: Source) -> tuple[float, int]:
    """When it was saved, to the millisecond, and at which step: what a checkpoint and its version have in common."""
    return round(source.saved_at, 3), source.step


def _dated(versions: Iterable[Version]) -> Iterator[tuple[Version, float]]:
    """Each version with the time of its save, raised to that of the version before it where it is earlier.

    Versions come in the order of saving. A clock that was set back between two saves must not make the older one win.
    """
    latest: dict[str, float] = {}
    for version in sorted(versions, key=lambda each: each.number):
        latest[version.name] = max(version.saved_at, latest.get(version.name, 0.0))
        yield version, latest[version.name]


def local_checkpoints(output_dir: Path, world_size: int | None = None) -> tuple[list[Checkpoint], list[tuple[Path, str]]]:
    """The complete checkpoints of an output_dir, and the incomplete ones with the reason."""
    complete, incomplete = [], []
    folders = [path for path in output_dir.iterdir() if step_of(path.name) is not None] if output_dir.is_dir() else []
    for path in folders:
        verdict = layouts.inspect(path, world_size=world_size)
        if verdict.complete:
            complete.append(Checkpoint(path, step_of(path.name) or 0, verdict))
        else:
            incomplete.append((path, str(verdict.problems[0])))
    return complete, incomplete


def before_restart(complete: Sequence[Checkpoint], spool: Spool) -> list[Checkpoint]:
    """The checkpoints saved before the training started over; all of them where it never did.

    The watcher recorded when that was: the Trainer may have deleted the first saves since, and later ones look like progress.
    """
    known = record.read(spool.output_dir)
    before = lineage.progress(known, list(spool.receipts()))
    over = [each.saved_at for each in complete if lineage.started_over(each.step, each.saved_at, before)]
    if known.restarted_at is not None:
        over.append(known.restarted_at)
    return [each for each in complete if not over or each.saved_at < min(over)]


def find_versions(store: Store, run: Run) -> list[Version]:
    """All versions that may hold checkpoints of a run: under ckptsync's names, and among the run's outputs.

    The latter may be named after the run's name, by the user's choice or by HF's WandbCallback.
    """
    found = [each for name in artifact.candidate_names(run) for each in store.versions(name)]
    known = {each.qualified for each in found}
    outputs: list[Version] = []
    with contextlib.suppress(NotFoundError):
        outputs = [each for each in store.outputs(run) if each.qualified not in known and artifact.is_candidate(each.name)]
    # Listed by name, since a run's outputs come without aliases (wandb 0.31). Runs of one name share an artifact.
    ours = {each.qualified for each in outputs}
    for name in dict.fromkeys(each.name for each in outputs):
        found += [each for each in store.versions(name) if each.qualified in ours]
    # HF's WandbCallback logs the model's architecture as text under the same name (transformers 5.24).
    return [each for each in found if "base_model" not in each.aliases]


def pick(versions: Sequence[Version], alias: str, run: Run) -> Version:
    """The version that a user named by vN or an alias. Raises NotFoundError, naming what there is."""
    for version in versions:
        if alias in (version.version, *version.aliases):
            return version
    known = sorted({name for version in versions for name in (version.version, *version.aliases)})
    shown = ", ".join(known[:12]) or "none"
    raise NotFoundError(f"run {run} has no version {alias!r}", hint=f"Known versions and aliases: {shown}.")
