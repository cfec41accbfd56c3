"""Gives a training its checkpoint: downloads a version where it isn't local, verifies it, and renames it into its place.

What is in its way is moved to torn/, never deleted. Chooses nothing: `resume` says which source, and tries the next one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePath

from ckptsync import durable, layouts
from ckptsync.checkpoint import Checkpoint, Receipt, Run, TrainingState, Version, fingerprint, step_of
from ckptsync.errors import CkptsyncError, IntegrityError, NotFoundError, StoreError
from ckptsync.restore.fetch import compare, fetch
from ckptsync.restore.sources import Source, before_restart, local_checkpoints
from ckptsync.restore.verification import check_download, check_local, require_space
from ckptsync.store.contract import Progress, Store
from ckptsync.store.retrying import Patience
from ckptsync.upload.spool import Spool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placed:
    """A checkpoint that was placed, ready to resume from, and its source."""

    path: Path
    step: int
    state: TrainingState
    source: Source


class Placement:
    """Places checkpoints of one run in an output_dir. Without a store, only local ones."""

    def __init__(
        self, store: Store | None, run: Run, spool: Spool, *, progress: Progress, patience: Patience, allow_restart: bool
    ) -> None:
        self._store = store
        self._run = run
        self._spool = spool
        self._output_dir = spool.output_dir
        self._progress = progress
        self._patience = patience
        self._allow_restart = allow_restart

    def place(self, source: Source) -> Placed:
        """Place one source. Raises IntegrityError when it is not a valid checkpoint, NotFoundError when it is gone."""
        if source.local:
            state = check_local(source.local)
            self._compare(source.local, source.version)
            self._clear(source.step, source.local.path)
            return Placed(source.local.path, source.step, state, source)
        assert source.version is not None  # noqa: S101 - a source has one of the two
        return self._download(source, source.version)

    def _compare(self, local: Checkpoint, version: Version | None) -> None:
        """Compare a local checkpoint with the version that it was uploaded as, or downloaded from. Raises IntegrityError.

        Only where nobody touched it since: what a user changed by intent differs. Without an answer, it isn't compared.
        """
        store = self._store
        if store is None or version is None:
            return
        durable_as = self._spool.receipts.path(f"{local.name}.{local.fingerprint}").exists()
        if not durable_as and version.ours.get("fingerprint") != local.fingerprint:
            return
        try:
            differing = compare(store, version, local.path, progress=self._progress, patience=self._patience)
        except (StoreError, NotFoundError, IntegrityError) as error:
            log.warning("%s was not compared with %s: %s", local.name, version, error)
            return
        if differing:
            raise IntegrityError(f"{', '.join(differing[:3])} changed on the disk since {local.name} became {version}")

    def place_best(self, placed: Placed, version_of: Callable[[int], Version]) -> None:
        """Download the Trainer's best checkpoint so far, unless it is local. The training can resume without it.

        `version_of` gives the version of a step, or raises CkptsyncError. The Trainer keeps an absolute path; where that differs
        on this machine, `SyncCallback` gives the Trainer the new one: no file of a verified checkpoint is edited.
        """
        best = placed.state.best_checkpoint
        step = step_of(PurePath(best).name) if best else None
        if best is None or step is None or step == placed.step:
            return
        here = self._output_dir / f"checkpoint-{step}"
        if not here.exists():
            try:
                self._download_best(version_of(step), step, here)
            except CkptsyncError as error:
                log.warning("the best checkpoint so far, %s, is missing, and the Trainer will forget it: %s", here.name, error)
                return
        if not Path(best).is_dir():
            log.warning(
                "the best checkpoint so far is %s, where SyncCallback makes the Trainer look; trainer_state.json says %s",
                here,
                best,
            )

    def _download_best(self, version: Version, step: int, target: Path) -> None:
        incoming, _ = self._fetch(version)
        durable.rename(incoming, target)
        # Sequence 0: it must not count as the checkpoint that was saved last.
        self._keep_receipt(target, version, step, sequence=0)
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
        fetch(store, version, incoming, progress=self._progress, patience=self._patience)
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
            if path != keep:
                self._set_aside(path)

    def clear_incomplete(self) -> None:
        """Move what is left of an interrupted save out of the way of a training that starts from scratch. Deletes nothing."""
        for path, _ in local_checkpoints(self._output_dir)[1]:
            self._set_aside(path)

    def _set_aside(self, path: Path) -> None:
        aside = _unused(durable.make_folder(self._spool.root / "torn") / f"{path.name}-{time.strftime('%Y%m%dT%H%M%S')}")
        durable.rename(path, aside)
        log.warning("moved %s out of the way, to %s", path.name, aside)

    def sweep_incoming(self) -> None:
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
            run_id=self._run.run_id,
            attempt=version.attempt,
            rows=version.rows,
            state_digest=str(version.ours.get("state_digest", "")),
            saved_print=layouts.saved_print(files),
            store=self._store.id if self._store else "",
        )
        self._spool.receipts.keep(receipt)


def _unused(path: Path) -> Path:
    """The path, or, if it is taken, the same with a number."""
    return next(each for number in count() if not (each := path.with_name(f"{path.name}.{number}") if number else path).exists())
