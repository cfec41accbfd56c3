"""Which checkpoint to resume from: the local ones and the versions, best first. Reads, and changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ckptsync import layouts, record
from ckptsync.checkpoint import Checkpoint, Problem, Rows, Run, Version, step_of
from ckptsync.errors import NotFoundError
from ckptsync.store import artifact
from ckptsync.store.contract import Store
from ckptsync.upload import lineage
from ckptsync.upload.spool import Spool
from ckptsync.upload.validation import validate


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


def order(
    local: Iterable[Checkpoint],
    versions: Iterable[Version],
    attempts: Mapping[Path, int] = MappingProxyType({}),
    *,
    prefix: Callable[[Path, int], str | None] = layouts.rows_digest,
) -> list[Source]:
    """The sources, best first, by (attempt, step); of equals the local one. No clock plays a part.

    `attempts` says in which attempt a local checkpoint was saved, where that is known. Any other one is taken for one of the
    newest attempt, unless its rows tell another history than those of the newest version: then it comes last.

    A version whose metadata says that it isn't resumable (no optimizer, scheduler or rng state) is left out, and so is the
    final model that HF's WandbCallback logs under the same name (alias `final_model`, transformers 5.24).
    """
    there = [each for each in versions if each.ours.get("resumable", True) is not False and "final_model" not in each.aliases]
    numbers = lineage.attempts_of(there)
    ranked = [((numbers[each.qualified], _step(each), 0, each.number), _from_store(each)) for each in there]
    top = max(there, key=lambda each: (numbers[each.qualified], _step(each), each.number), default=None)
    newest_attempt = max([*attempts.values(), *([numbers[top.qualified]] if top else [])], default=0)
    for each in local:
        if not each.verdict.resumable:
            continue
        twin = next((version for version in there if _is_twin(each, version)), None)
        attempt = numbers[twin.qualified] if twin else attempts.get(each.path)
        if attempt is None:
            attempt = newest_attempt if top is None or _shares_history(each, top, prefix) else ANOTHER_HISTORY
        ranked.append(((attempt, each.step, 1, 0), Source(each.saved_at, each.step, local=each, version=twin)))
    return [source for _, source in sorted(ranked, key=lambda each: each[0], reverse=True)]


ANOTHER_HISTORY = -(2**62)


def _step(version: Version) -> int:
    return version.step if version.step is not None else -1


def _from_store(version: Version) -> Source:
    return Source(version.saved_at, _step(version), version=version)


def _is_twin(checkpoint: Checkpoint, version: Version) -> bool:
    """Whether the version was made from this folder, or the folder downloaded from it."""
    state = checkpoint.verdict.state
    if version.step != checkpoint.step:
        return False
    if version.ours.get("fingerprint") == checkpoint.fingerprint:
        return True
    if digest := version.ours.get("state_digest"):
        return state is not None and state.digest == digest
    # A version of ckptsync 0.1.0: a download keeps the time of its save, to the millisecond.
    return round(version.saved_at, 3) == round(checkpoint.saved_at, 3)


def _shares_history(checkpoint: Checkpoint, top: Version, prefix: Callable[[Path, int], str | None]) -> bool:
    """Whether nothing speaks against a local checkpoint being of the training that saved the newest version: its rows may."""
    rows = checkpoint.verdict.state.rows if checkpoint.verdict.state else Rows()
    if not rows.comparable(top.rows):
        return True
    if rows.count < top.rows.count:
        return checkpoint.step < _step(top)
    return prefix(checkpoint.path, top.rows.count) == top.rows.digest


def attempts_of(checkpoints: Iterable[Checkpoint], spool: Spool) -> dict[Path, int]:
    """In which attempt each local checkpoint was saved, as far as its marker, receipt or snapshot says."""
    found = ((each.path, spool.attempt_of(each.name, each.fingerprint)) for each in checkpoints)
    return {path: attempt for path, attempt in found if attempt is not None}


def without_abandoned(
    local: Sequence[Checkpoint], versions: Sequence[Version], attempts: Mapping[Path, int], step: int, last: int
) -> tuple[list[Checkpoint], list[Version]]:
    """Both without what somebody left behind who went back to `step`: what attempts up to `last` saved above it."""
    numbers = lineage.attempts_of(versions)
    return (
        [each for each in local if each.step <= step or attempts.get(each.path, last + 1) > last],
        [each for each in versions if _step(each) <= step or numbers[each.qualified] > last],
    )


def newest(checkpoints: Sequence[Checkpoint], spool: Spool) -> Checkpoint | None:
    """The local checkpoint that was saved last, by (attempt, step). One that nobody numbered is of the newest attempt."""
    attempts = attempts_of(checkpoints, spool)
    current = max(attempts.values(), default=0)
    return max(checkpoints, key=lambda each: (attempts.get(each.path, current), each.step), default=None)


def local_checkpoints(output_dir: Path) -> tuple[list[Checkpoint], list[tuple[Path, Problem]]]:
    """The complete checkpoints of an output_dir, and the incomplete ones with the reason: that it can't be read, if so."""
    complete: list[Checkpoint] = []
    incomplete: list[tuple[Path, Problem]] = []
    spool = Spool(output_dir)
    folders = [path for path in output_dir.iterdir() if step_of(path.name) is not None] if output_dir.is_dir() else []
    for path in folders:
        verdict = validate(path, spool)
        if verdict.complete:
            complete.append(Checkpoint(path, step_of(path.name) or 0, verdict))
        else:
            incomplete.append((path, max(verdict.problems, key=lambda each: each.unreadable)))
    return complete, incomplete


def before_restart(complete: Sequence[Checkpoint], spool: Spool) -> list[Checkpoint]:
    """The checkpoints saved before the training started over; all of them where it never did.

    The watcher recorded when that was: the Trainer may have deleted the first saves since, and later ones look like progress.
    """
    known = record.read(spool.output_dir)
    restarted, legacy = known.restarted, known.restarted_at

    def is_of_restart(each: Checkpoint) -> bool:
        if legacy is not None and each.saved_at >= legacy:
            return True
        if restarted is None:
            return False
        name = f"{each.name}.{each.fingerprint}"
        if name in restarted.saves or name in spool.receipts:
            return name in restarted.saves
        attempt = spool.attempt_of(each.name, each.fingerprint)
        return attempt is not None and attempt == restarted.attempt

    return [each for each in complete if not is_of_restart(each)]


def find_versions(store: Store, run: Run, stem: str | None = None) -> list[Version]:
    """All versions that may hold checkpoints of a run: under ckptsync's names, and among the run's outputs.

    The latter may be named after the run's name, by the user's choice or by HF's WandbCallback. `stem` is that name, if known: a
    run that logs nothing itself has no outputs.
    """
    found = [each for name in artifact.candidate_names(run.run_id) for each in store.versions(name)]
    if stem not in (None, run.run_id):
        named = [each for name in artifact.candidate_names(str(stem)) for each in store.versions(name)]
        found += [each for each in named if each.ours.get("run") == run.run_id]
    known = {each.qualified for each in found}
    outputs: list[Version] = []
    with contextlib.suppress(NotFoundError):
        outputs = [each for each in store.outputs(run) if each.qualified not in known and artifact.is_candidate(each.name)]
    # Listed by name, since a run's outputs come without aliases (wandb 0.31). Runs of one name share an artifact.
    ours = {each.qualified for each in outputs}
    for name in dict.fromkeys(each.name for each in outputs):
        found += [each for each in store.versions(name) if each.qualified in ours]
    # HF's WandbCallback logs the model's architecture as text under the same name (transformers 5.24). Two run ids may share an
    # artifact's name, which is cut at 128 characters and has fewer of them.
    return [each for each in found if "base_model" not in each.aliases and each.ours.get("run") in (None, "", run.run_id)]


def pick(versions: Sequence[Version], alias: str, run: Run) -> Version:
    """The version that a user named by vN or an alias. Raises NotFoundError, naming what there is."""
    for version in versions:
        if alias in (version.version, *version.aliases):
            return version
    known = sorted({name for version in versions for name in (version.version, *version.aliases)})
    shown = ", ".join(known[:12]) or "none"
    raise NotFoundError(f"run {run} has no version {alias!r}", hint=f"Known versions and aliases: {shown}.")
