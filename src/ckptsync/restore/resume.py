"""Put the newest valid checkpoint of a run in its place: fetch, verify, rename. `job.launch` starts the training afterwards.

Only verified files are handed over: every byte against the manifest's digest, and the folder as a unit by `layouts`. When the
newest source fails, the one before it is next, and the log names the failed one and the reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePath
from typing import TypeVar

from ckptsync import durable, layouts, record
from ckptsync.checkpoint import Receipt, Run, TrainingState, Version, fingerprint, step_of
from ckptsync.errors import CkptsyncError, IntegrityError, NotFoundError, UsageError
from ckptsync.restore.sources import Source, attempts_of, before_restart, find_versions, local_checkpoints, order, pick
from ckptsync.restore.verification import check_download, check_local, require_space
from ckptsync.store.contract import Progress, Store
from ckptsync.store.retrying import INTERACTIVE, Patience, retry
from ckptsync.upload.spool import Spool

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placed:
    """A checkpoint that was placed, ready to resume from, and its source."""

    path: Path
    step: int
    state: TrainingState
    source: Source


class Resume:
    """Places the newest valid checkpoint of a run in an output_dir. Without a store, only local checkpoints count."""

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
        """The sources to try, best first. With an alias, that version alone."""
        store = self._store
        versions = self._ask("the list of versions", lambda: find_versions(store, self.run)) if store else []
        if numbers := [each.attempt for each in versions if each.attempt is not None]:
            # The next attempt is above all of them, not above that of the version that it resumes from: one may go back.
            record.note_highest_attempt(self._output_dir, max(numbers))
        if alias and alias != "latest":
            return order([], [pick(versions, alias, self.run)])
        complete, incomplete = local_checkpoints(self._output_dir, record.read(self._output_dir).world_size)
        for path, reason in incomplete:
            log.warning("skipping %s: incomplete: %s", path.name, reason)
        usable = complete if self._allow_restart else before_restart(complete, self._spool)
        for each in complete:
            if each not in usable:
                log.warning("skipping %s: saved by a training that started over", each.name)
        return order(usable, versions, attempts_of(usable, self._spool))

    def place(self, alias: str | None = None) -> Placed:
        """Place the newest valid checkpoint. Raises NotFoundError when there is none, IntegrityError when none is valid."""
        sources = self.sources(alias)
        if not sources:
            raise NotFoundError(
                f"run {self.run} has no checkpoint to resume from", hint="See `ckptsync list`; `ckptsync run` would start fresh."
            )
        failed = []
        for source in sources:
            try:
                placed = self._place_source(source)
            except (IntegrityError, NotFoundError) as error:
                log.error("skipping %s: %s", source, error)
                failed.append(str(source))
            else:
                log.info("resuming from %s, step %d, saved %s", source, placed.step, _ago(source.saved_at))
                _warn_of_higher(placed, sources)
                self._place_best(placed)
                self._sweep_incoming()
                return placed
        raise IntegrityError(f"no valid checkpoint of run {self.run}: tried {', '.join(failed)}")

    def _place_source(self, source: Source) -> Placed:
        if source.local:
            state = check_local(source.local)
            self._clear(source.step, source.local.path)
            return Placed(source.local.path, source.step, state, source)
        assert source.version is not None  # noqa: S101 - a source has one of the two
        return self._download(source, source.version)

    def _place_best(self, placed: Placed) -> None:
        """Download the Trainer's best checkpoint so far, unless it is local. The training can resume without it.

        The Trainer keeps its absolute path. Where that differs on this machine, `SyncCallback` gives the Trainer the new one: no
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
                log.warning("the best checkpoint so far, %s, is missing, and the Trainer will forget it: %s", here.name, error)
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
        # Sequence 0: it must not count as the checkpoint that was saved last.
        self._keep_receipt(target, source.version, step, sequence=0)
        log.info("downloaded the best checkpoint so far, %s", target.name)

    def _download(self, source: Source, version: Version) -> Placed:
        incoming, state = self._fetch(version)
        target = self._output_dir / f"checkpoint-{state.global_step}"
        self._clear(state.global_step, None)
        durable.rename(incoming, target)
        self._keep_receipt(target, version, state.global_step, sequence=self._spool.next_sequence())
        return Placed(target, state.global_step, state, source)

    def _fetch(self, version: Version) -> tuple[Path, TrainingState]:
        """Download a version into a folder below .ckptsync, and verify that it is a complete checkpoint."""
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
        """Move checkpoints that are incomplete, or that the Trainer would take for newer, out of the way. Deletes nothing."""
        complete, incomplete = local_checkpoints(self._output_dir)
        usable = complete if self._allow_restart else before_restart(complete, self._spool)
        higher = [each.path for each in complete if each.step >= step or each not in usable]
        for path in [*higher, *(path for path, _ in incomplete)]:
            if path == keep:
                continue
            aside = _unused(durable.make_folder(self._spool.root / "torn") / f"{path.name}-{time.strftime('%Y%m%dT%H%M%S')}")
            durable.rename(path, aside)
            log.warning("moved %s out of the way, to %s", path.name, aside)

    def _sweep_incoming(self) -> None:
        """Delete interrupted downloads and those of invalid versions: nothing will continue them now."""
        incoming = self._spool.root / "incoming"
        for folder in incoming.iterdir() if incoming.is_dir() else ():
            durable.remove_tree(folder)

    def _keep_receipt(self, target: Path, version: Version, step: int, *, sequence: int) -> None:
        """Record that the store has this checkpoint, so that the watcher doesn't upload it again."""
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
            run_id=self.run.run_id,
            attempt=version.attempt,
            rows=version.rows,
            state_digest=str(version.ours.get("state_digest", "")),
        )
        self._spool.keep(receipt)

    def _ask(self, what: str, unit: Callable[[], Result]) -> Result:
        return retry(unit, what=what, patience=self._patience)


def _warn_of_higher(placed: Placed, sources: Sequence[Source]) -> None:
    """Name what has a higher step than the checkpoint that is resumed from: nobody should find that out later."""
    higher = max(sources, key=lambda each: each.step)
    if higher.step > placed.step:
        log.warning("not resuming from %s, step %d: an earlier attempt or another training saved it", higher, higher.step)


def require_output_dir(output_dir: Path, *, create: bool) -> Path:
    """The output folder as an absolute path. Raises UsageError when it is a file, or missing without `create`."""
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
    """The path, or, if it is taken, the same with a number."""
    return next(each for number in count() if not (each := path.with_name(f"{path.name}.{number}") if number else path).exists())


def _ago(moment: float) -> str:
    seconds = max(0, round(time.time() - moment))
    return f"{seconds // 60} min {seconds % 60} s ago" if seconds < 7200 else f"{seconds / 3600:.1f} h ago"
