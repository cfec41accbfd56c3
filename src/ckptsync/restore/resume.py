"""Resolves which checkpoint of a run to resume from, and has it placed. `job.launch` starts the training afterwards.

Only verified files are handed over: every byte against the manifest's digest, and the folder as a unit by `layouts`. When the
newest source fails, the one before it is next, and the log names the failed one and the reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from ckptsync import durable, record, state_moves
from ckptsync.checkpoint import Problem, Run, Version, step_of
from ckptsync.errors import CkptsyncError, IntegrityError, NotFoundError, UsageError
from ckptsync.restore.placement import Placed, Placement
from ckptsync.restore.sources import (
    Source,
    attempts_of,
    before_restart,
    find_versions,
    local_checkpoints,
    order,
    pick,
    without_abandoned,
)
from ckptsync.store.contract import Progress, Store
from ckptsync.store.retrying import INTERACTIVE, Patience, retry
from ckptsync.upload.spool import Spool

log = logging.getLogger(__name__)


class Resume:
    """Places the newest valid checkpoint of a run in an output_dir. Without a store, only local checkpoints count.

    `stem` is what the artifact is named after, if that isn't the run's id.
    """

    def __init__(
        self,
        store: Store | None,
        run: Run,
        output_dir: Path,
        *,
        progress: Progress,
        patience: Patience = INTERACTIVE,
        allow_restart: bool = False,
        stem: str | None = None,
    ) -> None:
        self.run = run
        self._stem = stem
        self._store = store
        self._spool = Spool(output_dir)
        self._output_dir = output_dir
        self._patience = patience
        self._allow_restart = allow_restart
        self._placement = Placement(store, run, self._spool, progress=progress, patience=patience, allow_restart=allow_restart)

    def sources(self, alias: str | None) -> list[Source]:
        """The sources to try, best first. With an alias, that version alone."""
        versions = self._versions()
        if numbers := [each.attempt for each in versions if each.attempt is not None]:
            # The next attempt is above all of them, not above that of the version that it resumes from: one may go back.
            record.note_highest_attempt(self._output_dir, max(numbers))
        if alias and alias != "latest":
            return order([], [pick(versions, alias, self.run)])
        complete, incomplete = local_checkpoints(self._output_dir)
        for path, reason in incomplete:
            log.warning("skipping %s: incomplete: %s", path.name, reason)
        usable = complete if self._allow_restart else before_restart(complete, self._spool)
        for each in complete:
            if each not in usable:
                log.warning("skipping %s: saved by a training that started over", each.name)
        attempts = attempts_of(usable, self._spool)
        if rolled_back := record.read(self._output_dir).rolled_back:
            usable, versions = without_abandoned(usable, versions, attempts, *rolled_back)
        found = order(usable, versions, attempts)
        _require_readable(incomplete, found)
        return found

    def place(self, alias: str | None = None) -> Placed:
        """Place the newest valid checkpoint. Raises NotFoundError when there is none, IntegrityError when none is valid."""
        sources = self.sources(alias)
        if not sources:
            if not self._allow_restart:
                self._require_none_refused()
            self._placement.clear_incomplete()
            raise NotFoundError(
                f"run {self.run} has no checkpoint to resume from", hint="See `ckptsync list`; `ckptsync run` would start fresh."
            )
        failed = []
        for source in sources:
            try:
                placed = self._placement.place(source)
            except (IntegrityError, NotFoundError) as error:
                log.error("skipping %s: %s", source, error)
                failed.append(str(source))
            else:
                log.info("resuming from %s, step %d, saved %s", source, placed.step, _ago(source.saved_at))
                _warn_of_higher(placed, sources)
                self._placement.place_best(placed, self._version_of)
                self._placement.sweep_incoming()
                return placed
        raise IntegrityError(f"no valid checkpoint of run {self.run}: tried {', '.join(failed)}")

    def _require_none_refused(self) -> None:
        """Raise IntegrityError where checkpoints are there and none can be resumed from: a fresh start would overwrite them.

        A single torn one is what is left of a training that was killed in its first save. Of several, the earlier ones were
        finished, and where waiting cannot help, nobody was killed in the middle.
        """
        complete, incomplete = local_checkpoints(self._output_dir)
        refused = [(each.path, "; ".join(each.verdict.notes)) for each in complete if not each.verdict.resumable]
        if len(incomplete) > 1 or any(not problem.transient for _, problem in incomplete):
            refused += [(path, str(problem)) for path, problem in incomplete]
        stored = [(each, "not exactly resumable") for each in self._versions() if each.ours.get("resumable") is False]
        found = max(refused, key=lambda each: step_of(each[0].name) or 0, default=None) or next(iter(stored), None)
        if found is None:
            return
        where, reason = found
        name = where.name if isinstance(where, Path) else str(where)
        raise IntegrityError(
            f"{name} cannot be resumed from, nor any other checkpoint of run {self.run}: {reason}",
            hint="Mend the cause, or add --allow-restart to start from scratch beside them.",
        )

    def _version_of(self, step: int) -> Version:
        """The newest version of a step. Raises NotFoundError."""
        version = next((each.version for each in order([], self._versions()) if each.step == step), None)
        if version is None:
            raise NotFoundError(f"the store has no version of step {step}")
        return version

    def _versions(self) -> list[Version]:
        store = self._store
        if store is None:
            return []
        return retry(lambda: find_versions(store, self.run, self._stem), what="the list of versions", patience=self._patience)


def _require_readable(incomplete: Sequence[tuple[Path, Problem]], found: Sequence[Source]) -> None:
    """Raise CkptsyncError for a checkpoint above all others that can't be read now: that says nothing of its content."""
    for path, problem in incomplete:
        if problem.unreadable and (step_of(path.name) or 0) > max((each.step for each in found), default=-1):
            raise CkptsyncError(
                f"{path.name} cannot be read, and nothing newer is known: {problem}",
                hint=f"Make it readable, or move {path} away to resume from an older one; then start the same command again.",
            )


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
        durable.make_folder(path)
    except OSError as error:
        raise UsageError(f"{output_dir} cannot be made: {error.strerror}", hint="Give a folder that you may write to.") from error
    if stray := state_moves.drop_stray(path):
        log.warning("set aside as %s: the state of another folder that was %s", stray, path)
    return path


def _ago(moment: float) -> str:
    seconds = max(0, round(time.time() - moment))
    return f"{seconds // 60} min {seconds % 60} s ago" if seconds < 7200 else f"{seconds / 3600:.1f} h ago"
