"""The way back: resolve, fetch, verify, place. What starts the training afterwards is launch.

Nothing is handed over that was not proved: every byte against the manifest's digest, and the folder as a whole by layouts. When
the newest fails, the one before is tried, and what failed and why is told.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path, PurePath
from typing import TypeVar

from ckptsync import durable, layouts, record
from ckptsync.checkpoint import Checkpoint, Receipt, Run, TrainingState, Version, fingerprint, step_of
from ckptsync.errors import CkptsyncError, IntegrityError, NotFoundError, UsageError
from ckptsync.store import artifact
from ckptsync.store.contract import Progress, Store
from ckptsync.store.retrying import INTERACTIVE, Patience, retry
from ckptsync.upload import lineage
from ckptsync.upload.spool import Spool

Result = TypeVar("Result")

log = logging.getLogger(__name__)

RESERVE = 64 * 2**20
"""Bytes that must stay free beside a download: the training has to be able to write too."""


@dataclass(frozen=True, slots=True)
class Source:
    """One place to resume from: a folder that is here already, or a version in the store.

    With both, the folder holds what the version was made of, or was brought from it.
    """

    saved_at: float
    step: int
    local: Checkpoint | None = None
    version: Version | None = None

    def __str__(self) -> str:
        return (
            f"local {self.local.name}" if self.local else f"{self.version.name}:{self.version.version}" if self.version else "?"
        )


@dataclass(frozen=True, slots=True)
class Placed:
    """A checkpoint in its place, ready to be resumed from. `source` says where it came from."""

    path: Path
    step: int
    state: TrainingState
    source: Source


def order(local: Iterable[Checkpoint], versions: Iterable[Version]) -> list[Source]:
    """Where to resume from, best first: the one saved last, by (saved time, step); of equals the one that is here already.

    A version that says of itself that it can't be resumed from (no optimizer, scheduler or rng state) is left out, and the
    final model that HF's WandbCallback logs under the same name (alias `final_model`, transformers 5.24) likewise.
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
    """When it was saved, to the millisecond, and at which step: what a checkpoint and the version of it have in common."""
    return round(source.saved_at, 3), source.step


def _dated(versions: Iterable[Version]) -> Iterator[tuple[Version, float]]:
    """Each version with the time of its save, but none with an earlier one than the version before it.

    Versions come in the order of saving. A clock that was set back between two saves must not make the older one win.
    """
    latest: dict[str, float] = {}
    for version in sorted(versions, key=lambda each: each.number):
        latest[version.name] = max(version.saved_at, latest.get(version.name, 0.0))
        yield version, latest[version.name]


def local_checkpoints(output_dir: Path, world_size: int | None = None) -> tuple[list[Checkpoint], list[tuple[Path, str]]]:
    """The whole checkpoints of an output folder, and the torn ones with the reason."""
    whole, torn = [], []
    folders = [path for path in output_dir.iterdir() if step_of(path.name) is not None] if output_dir.is_dir() else []
    for path in folders:
        verdict = layouts.inspect(path, world_size=world_size)
        if verdict.complete:
            whole.append(Checkpoint(path, step_of(path.name) or 0, verdict))
        else:
            torn.append((path, str(verdict.problems[0])))
    return whole, torn


def going_on(whole: Sequence[Checkpoint], spool: Spool) -> list[Checkpoint]:
    """Those of a training that went on. What one saved that had started over, from its first save on, is left out.

    The watcher noted when that was: the Trainer's rotation may have taken the first saves, and the later ones look like progress.
    """
    known = record.read(spool.output_dir)
    before = lineage.progress(known, list(spool.receipts()))
    over = [each.saved_at for each in whole if lineage.started_over(each.step, each.saved_at, before)]
    if known.restarted_at is not None:
        over.append(known.restarted_at)
    return [each for each in whole if not over or each.saved_at < min(over)]


def find_versions(store: Store, run: Run) -> list[Version]:
    """All versions that may hold checkpoints of a run: under our names, and those that stand in the run's list of outputs.

    The latter are named after the run's name where the user or HF's WandbCallback wanted that.
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
    # The text that HF's WandbCallback logs of the model's architecture under the same name (transformers 5.24).
    return [each for each in found if "base_model" not in each.aliases]


def pick(versions: Sequence[Version], alias: str, run: Run) -> Version:
    """The version that a user named by vN or an alias. Raises NotFoundError, naming what there is."""
    for version in versions:
        if alias in (version.version, *version.aliases):
            return version
    known = sorted({name for version in versions for name in (version.version, *version.aliases)})
    shown = ", ".join(known[:12]) or "none at all"
    raise NotFoundError(f"run {run} has no version {alias!r}", hint=f"There is: {shown}.")


class Resume:
    """Brings the newest valid checkpoint of a run into an output folder. Without a store, only what is there already counts."""

    def __init__(
        self,
        store: Store | None,
        run: Run,
        output_dir: Path,
        *,
        progress: Progress,
        patience: Patience = INTERACTIVE,
        allow_restart: bool = False,
    ) -> None:
        self.run = run
        self._store = store
        self._spool = Spool(output_dir)
        self._output_dir = output_dir
        self._progress = progress
        self._patience = patience
        self._allow_restart = allow_restart

    def sources(self, alias: str | None) -> list[Source]:
        """What could be resumed from, best first. With an alias, that version alone."""
        store = self._store
        versions = self._ask("the list of versions", lambda: find_versions(store, self.run)) if store else []
        if alias and alias != "latest":
            return order([], [pick(versions, alias, self.run)])
        whole, torn = local_checkpoints(self._output_dir, record.read(self._output_dir).world_size)
        for path, reason in torn:
            log.warning("not resumed from, not whole: %s: %s", path.name, reason)
        going = whole if self._allow_restart else going_on(whole, self._spool)
        for each in whole:
            if each not in going:
                log.warning("not resumed from, of a training that started over: %s", each.name)
        return order(going, versions)

    def place(self, alias: str | None = None) -> Placed:
        """The newest valid checkpoint, in its place. Raises NotFoundError when there is none, IntegrityError when none holds."""
        sources = self.sources(alias)
        if not sources:
            raise NotFoundError(
                f"run {self.run} has no checkpoint to resume from", hint="See `ckptsync list`; `ckptsync run` would start fresh."
            )
        failed = []
        for source in sources:
            try:
                placed = self._bring(source)
            except (IntegrityError, NotFoundError) as error:
                log.error("not resumed from %s: %s", source, error)
                failed.append(str(source))
            else:
                log.info("resuming from %s, step %d, saved %s", source, placed.step, _ago(source.saved_at))
                self._bring_best(placed)
                self._sweep_incoming()
                return placed
        raise IntegrityError(f"no valid checkpoint of run {self.run}: tried {', '.join(failed)}")

    def _bring(self, source: Source) -> Placed:
        if source.local:
            state = check_local(source.local)
            self._clear(source.step, source.local.path)
            return Placed(source.local.path, source.step, state, source)
        assert source.version is not None  # noqa: S101 - a source has one of the two
        return self._download(source, source.version)

    def _bring_best(self, placed: Placed) -> None:
        """Bring the checkpoint that the Trainer calls its best so far, where it isn't here. Without it the training goes on too.

        The Trainer keeps its absolute path. Where that is another one here, `SyncCallback` tells the Trainer the new path: no
        file of a verified checkpoint is edited.
        """
        best = placed.state.best_checkpoint
        step = step_of(PurePath(best).name) if best else None
        if best is None or step is None or step == placed.step:
            return
        here = self._output_dir / f"checkpoint-{step}"
        if not here.exists():
            try:
                self._download_best(step, here)
            except CkptsyncError as error:
                log.warning("the best checkpoint so far, %s, is missing and will be forgotten: %s", here.name, error)
                return
        if not Path(best).is_dir():
            log.warning(
                "the best checkpoint so far is %s, where SyncCallback makes the Trainer look; trainer_state.json says %s",
                here,
                best,
            )

    def _download_best(self, step: int, target: Path) -> None:
        store = self._store
        versions = self._ask("the list of versions", lambda: find_versions(store, self.run)) if store else []
        source = next((each for each in order([], versions) if each.step == step), None)
        if source is None or source.version is None:
            raise NotFoundError(f"the store has no version of step {step}")
        incoming, _ = self._fetch(source.version)
        durable.rename(incoming, target)
        # Sequence 0: it must not pass for the checkpoint that was saved last.
        self._keep_receipt(target, source.version, step, sequence=0)
        log.info("brought the best checkpoint so far, %s", target.name)

    def _download(self, source: Source, version: Version) -> Placed:
        incoming, state = self._fetch(version)
        target = self._output_dir / f"checkpoint-{state.global_step}"
        self._clear(state.global_step, None)
        durable.rename(incoming, target)
        self._keep_receipt(target, version, state.global_step, sequence=self._spool.next_sequence())
        return Placed(target, state.global_step, state, source)

    def _fetch(self, version: Version) -> tuple[Path, TrainingState]:
        """Download a version into a folder below .ckptsync, and prove that it is a whole checkpoint."""
        store = self._store
        assert store is not None  # noqa: S101 - versions come from one
        incoming = durable.make_folder(self._spool.root / "incoming") / f"{version.name}.{version.version}"
        require_space(version, incoming)
        incoming.mkdir(exist_ok=True)
        furthest = 0

        def progress(done: int, total: int) -> None:
            nonlocal furthest
            furthest = max(furthest, done)
            self._progress(done, total)

        retry(
            lambda: store.fetch(version, incoming, progress=progress),
            what=f"the download of {version.name}:{version.version}",
            patience=self._patience,
            reached=lambda: furthest,
        )
        try:
            state = check_download(incoming, version)
        except IntegrityError:
            durable.remove_tree(incoming)
            raise
        return incoming, state

    def _clear(self, step: int, keep: Path | None) -> None:
        """Move out of the way what the Trainer would take for newer, or trip over. Nothing is deleted."""
        whole, torn = local_checkpoints(self._output_dir)
        going = whole if self._allow_restart else going_on(whole, self._spool)
        higher = [each.path for each in whole if each.step >= step or each not in going]
        for path in [*higher, *(path for path, _ in torn)]:
            if path == keep:
                continue
            aside = _unused(durable.make_folder(self._spool.root / "torn") / f"{path.name}-{time.strftime('%Y%m%dT%H%M%S')}")
            durable.rename(path, aside)
            log.warning("moved out of the way: %s, now %s", path.name, aside)

    def _sweep_incoming(self) -> None:
        """Downloads that were interrupted, or of versions that did not hold: nobody will go on with them now."""
        incoming = self._spool.root / "incoming"
        for folder in incoming.iterdir() if incoming.is_dir() else ():
            durable.remove_tree(folder)

    def _keep_receipt(self, target: Path, version: Version, step: int, *, sequence: int) -> None:
        """What came from the store and was proved is durable there: the watcher must not upload it again."""
        files = layouts.list_files(target)
        name = f"{target.name}.{fingerprint(files)}"
        durable.make_folder(self._spool.root / "receipts")
        receipt = Receipt(
            snapshot=name,
            step=step,
            saved_at=version.saved_at,
            sequence=sequence,
            artifact=version.qualified.rpartition(":")[0],
            version=version.version,
            digest=version.digest,
            bytes=version.bytes,
            files=len(files),
            seconds=0.0,
            committed_at=time.time(),
        )
        self._spool.keep(receipt)

    def _ask(self, what: str, unit: Callable[[], Result]) -> Result:
        return retry(unit, what=what, patience=self._patience)


def require_space(version: Version, incoming: Path) -> None:
    """Raise CkptsyncError where what is still missing of a version doesn't fit beside what is in `incoming` already."""
    # Blocks, not sizes: a file that was begun has its full length at once, and holes where nothing has arrived.
    there = sum(path.stat().st_blocks * 512 for path in incoming.rglob("*") if path.is_file())
    free = shutil.disk_usage(incoming.parent).free
    if version.bytes - there + RESERVE > free:
        raise CkptsyncError(
            f"{version} needs {version.bytes} bytes, and {incoming.parent} has {free} free",
            hint="Free some space or give another folder.",
        )


def check_download(folder: Path, version: Version) -> TrainingState:
    """Prove that a downloaded folder is a whole, resumable checkpoint, and give its files the time of the save.

    Raises IntegrityError with the reason.
    """
    verdict = layouts.inspect(folder, step=version.step, ordered=False, deep=True)
    if not verdict.complete or verdict.state is None:
        reasons = "; ".join(str(problem) for problem in verdict.problems[:3]) or "no trainer_state.json"
        raise IntegrityError(f"{version.name}:{version.version} is not a whole checkpoint: {reasons}")
    if not verdict.resumable:
        raise IntegrityError(f"{version.name}:{version.version} cannot be resumed from: {'; '.join(verdict.notes)}")
    for file in verdict.files:
        path = folder / file.path
        with path.open("rb") as opened:
            os.fsync(opened.fileno())
        os.utime(path, (version.saved_at, version.saved_at))
    return verdict.state


def check_local(checkpoint: Checkpoint) -> TrainingState:
    """Read every byte that has a checksum before a checkpoint that is here already is handed over. Raises IntegrityError."""
    verdict = layouts.inspect(checkpoint.path, deep=True)
    if not verdict.complete or verdict.state is None:
        raise IntegrityError(f"{checkpoint.name} is not whole: {'; '.join(str(problem) for problem in verdict.problems[:3])}")
    return verdict.state


def differences(version: Version) -> list[str]:
    """What differs between the machine that saved a version and this one, in words."""
    recorded = version.ours.get("libraries")
    here = artifact.libraries()
    if not isinstance(recorded, dict):
        return []
    return [
        f"{name} was {recorded[name]} and is {here[name]} here"
        for name in sorted(recorded.keys() & here.keys())
        if recorded[name] != here[name]
    ]


def require_output_dir(output_dir: Path, *, create: bool) -> Path:
    """The output folder as an absolute path. Raises UsageError when it is a file, or missing where it should be there."""
    path = output_dir.expanduser().absolute()
    for each in (path, *path.parents):
        if each.exists() and not each.is_dir():
            raise UsageError(f"{each} is not a folder", hint="Give the Trainer's output_dir.")
    if not path.exists() and not create:
        raise UsageError(
            f"{output_dir} does not exist", hint=f"Give the Trainer's output_dir, or make it first: mkdir -p {output_dir}"
        )
    try:
        return durable.make_folder(path)
    except OSError as error:
        raise UsageError(f"{output_dir} cannot be made: {error.strerror}", hint="Give a folder that you may write to.") from error


def _unused(path: Path) -> Path:
    """The path, or where something has that name already the same with a number."""
    return next(each for number in count() if not (each := path.with_name(f"{path.name}.{number}") if number else path).exists())


def _ago(moment: float) -> str:
    seconds = max(0, round(time.time() - moment))
    return f"{seconds // 60} min {seconds % 60} s ago" if seconds < 7200 else f"{seconds / 3600:.1f} h ago"
