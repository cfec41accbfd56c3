"""Validates quiet checkpoint folders and pins the complete ones in the spool. What it skips, it names with the reason.

It decides nothing about uploads, and it waits for nothing: what cannot be decided now is offered again by the quiet period.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptsync import layouts, record
from ckptsync.checkpoint import Checkpoint, Receipt, Snapshot, Verdict, fingerprint
from ckptsync.errors import CkptsyncError, RestartedError, SnapshotChangedError
from ckptsync.sizes import size_of
from ckptsync.upload import lineage
from ckptsync.upload.policy import Policy
from ckptsync.upload.quiet_period import QuietFolder, QuietPeriod
from ckptsync.upload.spool import Spool

log = logging.getLogger(__name__)

PIN_RETRY_SECONDS = 5.0
"""Seconds until a pin that the file system refused (full, read-only) is tried again."""

PIN_HINT = "Free space below .ckptsync and make it writable; --spool-limit bounds what is queued there."

MISSING_FILES_SECONDS = 30.0
"""Seconds that a complete checkpoint waits for files that the one before had. Then it is pinned: the program may have changed."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is known of the training beforehand: how many processes save, and whether it may restart from scratch."""

    world_size: int | None = None
    allow_restart: bool = False


class Pinner:
    """Turns the checkpoints of one output folder into queued snapshots.

    `restarted` is the error of a training that restarted from scratch, None for one that goes on.
    """

    def __init__(self, spool: Spool, quiet_period: QuietPeriod, policy: Policy, expectation: Expectation) -> None:
        self.restarted: RestartedError | None = None
        self.policy = policy
        self._spool = spool
        self._quiet_period = quiet_period
        self._expectation = expectation
        self._names: frozenset[str] = frozenset()
        self._seen: dict[str, str] = {}
        self._before: lineage.Progress | None = None
        self._refused: OSError | None = None

    @property
    def undecided(self) -> bool:
        """Whether some folder is still being written, so that the next scan should come soon."""
        return self._quiet_period.unsettled

    @property
    def refused(self) -> bool:
        """Whether the file system refused the last pin."""
        return self._refused is not None

    def continue_from(self, known: Sequence[Receipt | Snapshot]) -> None:
        """Take up where the training has to go on: run.json says when it was resumed, and from which step.

        `known` includes queued snapshots: what one of them superseded must not be pinned after it, or `latest` would go back.
        """
        self._before = lineage.progress(record.read(self._spool.output_dir), known)

    def pin_quiet(self, folders: Sequence[QuietFolder], *, alive: Callable[[], None]) -> bool:
        """Validate these folders and pin what is complete, in the order of saving. True when something was pinned."""
        complete: list[tuple[QuietFolder, Checkpoint]] = []
        for folder in reversed(folders):
            if self._dealt_with(folder) or (complete and not self._wanted_beside(folder, complete[0][1])):
                self._quiet_period.accept(folder)
            elif checkpoint := self._validate(folder):
                complete.append((folder, checkpoint))
            alive()
        pinned = [self._pin(folder, checkpoint, alive) for folder, checkpoint in reversed(complete)]
        return any(pinned)

    def raise_refusal(self) -> None:
        """Raise the file system's reason, where it refused the last pin."""
        if self._refused:
            raise CkptsyncError(f"not pinned: {self._refused}", hint=PIN_HINT)

    def _dealt_with(self, folder: QuietFolder) -> bool:
        """Whether this very save is queued, parked or durable, or older than what is."""
        known = self._spool.knows(f"{folder.name}.{folder.fingerprint}")
        return known or lineage.left_behind(folder.step, folder.saved_at, self._before)

    def _wanted_beside(self, folder: QuietFolder, newest: Checkpoint) -> bool:
        """When several appeared at once: whether an older one is wanted too. The best is, since no later upload brings it."""
        state = newest.verdict.state
        best = state.best_checkpoint if state else None
        return self.policy.keep_all or (best is not None and Path(best).name == folder.name)

    def _validate(self, folder: QuietFolder) -> Checkpoint | None:
        """The checkpoint if it is complete, else None, with the reason logged."""
        size = self._expectation.world_size or record.read(self._spool.output_dir).world_size
        verdict = layouts.inspect(folder.path, world_size=size)
        if fingerprint(verdict.files) != folder.fingerprint:
            return None
        self._note_seen(folder)
        if not verdict.complete:
            self._quiet_period.refuse(folder)
            self._note_incomplete(folder, verdict)
            return None
        missing = layouts.inspect(folder.path, world_size=size, expected_names=self._names)
        if not missing.complete:
            self._names = frozenset()
            self._quiet_period.postpone(folder, MISSING_FILES_SECONDS)
            self._note_incomplete(folder, missing)
            return None
        return Checkpoint(folder.path, folder.step, verdict)

    def _pin(self, folder: QuietFolder, checkpoint: Checkpoint, alive: Callable[[], None]) -> bool:
        """Pin a complete checkpoint, unless it is not wanted or shows a restart. What can't be pinned yet is offered again."""
        if not self._wanted(checkpoint):
            self._quiet_period.accept(folder)
            return False
        over = lineage.started_over(checkpoint.step, checkpoint.saved_at, self._before)
        if not self._expectation.allow_restart and (self.restarted or over):
            self._quiet_period.accept(folder)
            self._note_restart(checkpoint)
            return False
        try:
            pinned = self._spool.pin(checkpoint, alive=alive)
        except SnapshotChangedError as error:
            log.info("%s; it is scanned again", error)
            return False
        except OSError as error:
            self._quiet_period.postpone(folder, PIN_RETRY_SECONDS)
            self._note_refusal(checkpoint, error)
            return False
        self._quiet_period.accept(folder)
        self._note_pinned(checkpoint, pinned)
        return True

    def _wanted(self, checkpoint: Checkpoint) -> bool:
        """Whether it is to be uploaded at all, now or later."""
        state = checkpoint.verdict.state
        return self.policy.mode != "disabled" and (not self.policy.only_model or (state is not None and state.finished))

    def _note_pinned(self, checkpoint: Checkpoint, pinned: Snapshot) -> None:
        if self._refused:
            log.warning("pinning works again")
            self._refused = None
        self._names = frozenset(file.path for file in checkpoint.files)
        self._before = lineage.Progress(checkpoint.step, checkpoint.saved_at, resumed=False)
        for note in checkpoint.verdict.notes:
            log.warning("%s: %s", checkpoint.name, note)
        if pinned.pinned_by == "copy":
            log.warning("%s was copied: this file system supports neither reflinks nor hard links here", checkpoint.name)
        log.info("pinned %s (%d files, %s) by %s", pinned.checkpoint, len(pinned.files), size_of(pinned.bytes), pinned.pinned_by)

    def _note_seen(self, folder: QuietFolder) -> None:
        """Once for each new save."""
        if self._seen.get(folder.name) != folder.fingerprint:
            self._seen[folder.name] = folder.fingerprint
            self._spool.record("seen", checkpoint=folder.name, print=folder.fingerprint, step=folder.step)

    def _note_incomplete(self, folder: QuietFolder, verdict: Verdict) -> None:
        reasons = "; ".join(str(problem) for problem in verdict.problems[:3])
        self._spool.record("incomplete", checkpoint=folder.name, step=folder.step, reason=reasons)
        log.warning("skipping %s: incomplete: %s", folder.name, reasons)

    def _note_refusal(self, checkpoint: Checkpoint, error: OSError) -> None:
        """Once, and again only for another reason: it is tried every few seconds."""
        if self._refused is None or self._refused.errno != error.errno:
            log.error("cannot pin %s, retrying every %.0f s: %s. %s", checkpoint.name, PIN_RETRY_SECONDS, error, PIN_HINT)
        self._refused = error

    def _note_restart(self, checkpoint: Checkpoint) -> None:
        if self.restarted is None and self._before is not None:
            before = self._before.step
            self.restarted = RestartedError(
                f"{checkpoint.name} is not above step {before}, so the training started over; nothing of it is uploaded"
            )
            record.update(self._spool.output_dir, restarted_at=checkpoint.saved_at)
            self._spool.record("restarted", checkpoint=checkpoint.name, step=checkpoint.step, before=before)
            log.error("%s. %s", self.restarted, self.restarted.hint)
