"""Validates quiet checkpoint folders and pins the complete ones in the spool. What it skips, it names with the reason.

It decides nothing about uploads, and it waits for nothing: what cannot be decided now is offered again by the quiet period.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptsync.checkpoint import Checkpoint, Receipt, Snapshot, Verdict, fingerprint, step_of
from ckptsync.errors import CkptsyncError, IntegrityError, SnapshotChangedError
from ckptsync.sizes import size_of
from ckptsync.upload import lineage
from ckptsync.upload.lineage import Appearance
from ckptsync.upload.quiet_period import QuietFolder, QuietPeriod
from ckptsync.upload.restart_detection import RestartDetection
from ckptsync.upload.settings import UploadSettings
from ckptsync.upload.spool import Spool
from ckptsync.upload.validation import validate

log = logging.getLogger(__name__)

PIN_RETRY_SECONDS = 5.0
"""Seconds until a pin that the file system refused (full, read-only) is tried again."""

READ_RETRY_SECONDS = 5.0
"""Seconds until a checkpoint that the file system could not read is validated again: only its content can refuse it for good."""

PIN_HINT = "Free space below .ckptsync and make it writable; --spool-limit bounds what is queued there."

MISSING_FILES_SECONDS = 30.0
"""Seconds that a complete checkpoint waits for files that the one before had. Then it is pinned: the program may have changed."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is known of the training beforehand: how many processes save, and whether it may restart from scratch."""

    world_size: int | None = None
    allow_restart: bool = False


class Pinner:
    """Turns the checkpoints of one output folder into queued snapshots."""

    def __init__(self, spool: Spool, quiet_period: QuietPeriod, settings: UploadSettings, expectation: Expectation) -> None:
        self.settings = settings
        self.restart_detection = RestartDetection(spool, allow_restart=expectation.allow_restart)
        self._spool = spool
        self._quiet_period = quiet_period
        self._expectation = expectation
        self.last_chance = False
        """Set when no further scan will come: a save that lacks what the one before had is taken as it is."""
        self._names: frozenset[str] = frozenset()
        self._doubted: set[str] = set()
        self._seen: dict[str, str] = {}
        self._newest: str | None = None
        self._refused: OSError | None = None
        self._unreadable: dict[str, str] = {}
        self._incomplete: dict[str, str] = {}

    @property
    def undecided(self) -> bool:
        """Whether some folder is still being written, so that the next scan should come soon."""
        return self._quiet_period.unsettled

    @property
    def being_written(self) -> bool:
        """Whether one of those goes on changing, rather than being offered again after a certain time."""
        return self._quiet_period.changing

    @property
    def blocked(self) -> bool:
        """Whether only the file system keeps what is left from being pinned: it refuses a pin, or a read."""
        return self._refused is not None or bool(self._unreadable)

    def continue_from(self, known: Sequence[Receipt | Snapshot]) -> None:
        """Continue from what is durable or queued: where the training has come to, and what was there at its newest pin."""
        self.restart_detection.take_up(known)
        self._quiet_period.note_present()
        name = lineage.newest_name(known)
        if name and (folders := self._spool.scanned(name)) is not None:
            self._quiet_period.remember(folders)

    def pin_quiet(self, folders: Sequence[QuietFolder], *, alive: Callable[[], None]) -> bool:
        """Validate these folders and pin what is complete, in the order of saving. True when something was pinned."""
        complete: list[tuple[QuietFolder, Checkpoint]] = []
        unlisted = self._quiet_period.unlisted
        watched = {name: reason for name, reason in self._unreadable.items() if self._quiet_period.watches(name)}
        self._unreadable = watched | {name: self._unreadable[name] for name in unlisted if name in self._unreadable}
        for name, reason in unlisted.items():
            self._note_unreadable(name, reason)
        for name in self._quiet_period.linked - self._incomplete.keys():
            self._incomplete[name] = "it is a symbolic link, and links are not followed"
            log.warning("skipping %s: %s", name, self._incomplete[name])
        for folder in reversed(folders):
            if self._dealt_with(folder):
                self._quiet_period.accept(folder)
            elif complete and not self._wanted_beside(folder, *complete[0]):
                self._note_overtaken(folder, complete[0][0])
                self._quiet_period.accept(folder)
            elif checkpoint := self._validate(folder):
                if self.restart_detection.accepts(folder, checkpoint):
                    complete.append((folder, checkpoint))
                else:
                    self._quiet_period.accept(folder)
            alive()
        pinned = [self._pin(folder, checkpoint, alive) for folder, checkpoint in reversed(complete)]
        if any(pinned) and self._newest:
            self._note_scanned(self._newest)
        return any(pinned)

    def _note_scanned(self, newest: str) -> None:
        try:
            self._spool.note_scanned(newest, self._quiet_period.folders)
        except OSError as error:
            log.warning("cannot write scanned.json: %s; a restart from scratch may pass unnoticed at the next start", error)

    def raise_refusal(self) -> None:
        """Raise the file system's reason, where it refused the last pin or read."""
        if self._refused:
            raise CkptsyncError(f"not pinned: {self._refused}", hint=PIN_HINT)
        for name, reason in self._unreadable.items():
            raise CkptsyncError(f"{name} is not durable: {reason}", hint="Make it readable, then start the same command again.")

    def settle(self) -> None:
        """No further scan will come after the next one: take what is complete by itself, as it is."""
        self.last_chance = True
        self._quiet_period.end_postponements()

    def raise_unsettled(self) -> None:
        """Raise the reason why the checkpoint that the training saved last did not become durable, if it didn't."""
        for name in self._quiet_period.unfinished:
            raise CkptsyncError(f"{name} is not durable: it was still being written", hint="Start the same command again.")
        newest = max(self._incomplete, key=lambda name: step_of(name) or 0, default=None)
        if newest and (step_of(newest) or 0) > self.restart_detection.step and (self._spool.output_dir / newest).is_dir():
            reason = self._incomplete[newest]
            before = self.restart_detection.step
            hint = f"The newest one before it is that of step {before}." if before else "No checkpoint before it is durable."
            raise IntegrityError(f"{newest} is not durable: incomplete: {reason}", hint=hint)

    def _dealt_with(self, folder: QuietFolder) -> bool:
        """Whether this very save is queued, parked or durable, or was there, and older, before the first scan."""
        return self._spool.knows(f"{folder.name}.{folder.fingerprint}") or self.restart_detection.is_older(folder)

    def _wanted_beside(self, folder: QuietFolder, above: QuietFolder, newest: Checkpoint) -> bool:
        """When several appeared at once: whether a lower one is to be examined too. The best is, since no later upload brings it.

        So is one that was created after the highest: the training may have restarted from scratch.
        """
        if folder.appearance is Appearance.CREATED and above.appearance is not Appearance.CREATED:
            return True
        state = newest.verdict.state
        best = state.best_checkpoint if state else None
        return self.settings.keep_all or (best is not None and Path(best).name == folder.name)

    def _validate(self, folder: QuietFolder) -> Checkpoint | None:
        """The checkpoint if it is complete, else None, with the reason logged."""
        verdict = validate(folder.path, self._spool, world_size=self._expectation.world_size)
        if fingerprint(verdict.files) != folder.fingerprint:
            return None
        self._note_seen(folder)
        if any(problem.unreadable for problem in verdict.problems):
            self._quiet_period.postpone(folder, READ_RETRY_SECONDS)
            self._note_unreadable(folder.name, "; ".join(str(problem) for problem in verdict.problems if problem.unreadable))
            return None
        self._unreadable.pop(folder.name, None)
        if not verdict.complete:
            self._quiet_period.refuse(folder)
            self._note_incomplete(folder, verdict)
            return None
        return None if self._lacks_expected(folder) else Checkpoint(folder.path, folder.step, verdict)

    def _lacks_expected(self, folder: QuietFolder) -> bool:
        """Whether a save that is complete by itself lacks what the training saved before. Offered again, it is taken as it is."""
        save = f"{folder.name}.{folder.fingerprint}"
        if self.last_chance or save in self._doubted:
            return False
        verdict = validate(folder.path, self._spool, world_size=self._expectation.world_size, expected_names=self._names)
        if verdict.complete:
            return False
        self._doubted.add(save)
        self._quiet_period.postpone(folder, MISSING_FILES_SECONDS)
        self._note_incomplete(folder, verdict)
        return True

    def _pin(self, folder: QuietFolder, checkpoint: Checkpoint, alive: Callable[[], None]) -> bool:
        """Pin a complete checkpoint, unless it is not wanted. What can't be pinned yet is offered again."""
        if not self._wanted(checkpoint):
            self._quiet_period.accept(folder)
            return False
        try:
            pinned = self._spool.pin(checkpoint, attempt=self.restart_detection.attempt_of(folder), alive=alive)
        except SnapshotChangedError as error:
            log.info("%s; it is scanned again", error)
            return False
        except OSError as error:
            self._quiet_period.postpone(folder, PIN_RETRY_SECONDS)
            self._note_refusal(checkpoint, error)
            return False
        self._quiet_period.overtake(folder)
        self._quiet_period.accept(folder)
        self._note_pinned(checkpoint, pinned)
        return True

    def _wanted(self, checkpoint: Checkpoint) -> bool:
        """Whether it is to be uploaded at all, now or later."""
        state = checkpoint.verdict.state
        return self.settings.mode != "disabled" and (not self.settings.only_model or (state is not None and state.finished))

    def _note_pinned(self, checkpoint: Checkpoint, pinned: Snapshot) -> None:
        if self._refused:
            log.warning("pinning works again")
            self._refused = None
        self._incomplete.pop(checkpoint.name, None)
        self._names = frozenset(file.path for file in checkpoint.files)
        self.restart_detection.advance(pinned, checkpoint.path)
        self._newest = pinned.name
        for note in checkpoint.verdict.notes:
            log.warning("%s: %s", checkpoint.name, note)
        if pinned.pinned_by == "copy":
            log.warning("%s was copied: this file system supports neither reflinks nor hard links here", checkpoint.name)
        log.info("pinned %s (%d files, %s) by %s", pinned.checkpoint, len(pinned.files), size_of(pinned.bytes), pinned.pinned_by)

    def _note_seen(self, folder: QuietFolder) -> None:
        """Once for each new save."""
        if self._seen.get(folder.name) != folder.fingerprint:
            self._seen[folder.name] = folder.fingerprint
            self._spool.history.record("seen", checkpoint=folder.name, print=folder.fingerprint, step=folder.step)

    def _note_overtaken(self, folder: QuietFolder, above: QuietFolder) -> None:
        """A save that appeared together with a newer one is not uploaded. One from before the first scan is no news."""
        if folder.appearance is not Appearance.PRESENT:
            log.info("skipping %s: superseded by %s", folder.name, above.name)
            self._spool.history.record("superseded", checkpoint=folder.name, step=folder.step, reason=f"with {above.name}")

    def _note_incomplete(self, folder: QuietFolder, verdict: Verdict) -> None:
        """Warn once for each checkpoint: a slow save pauses often, and each pause ends at another file."""
        reasons = "; ".join(str(problem) for problem in verdict.problems[:3])
        level = logging.INFO if folder.name in self._incomplete else logging.WARNING
        self._incomplete[folder.name] = reasons
        self._spool.history.record("incomplete", checkpoint=folder.name, step=folder.step, reason=reasons)
        log.log(level, "skipping %s: incomplete: %s", folder.name, reasons)

    def _note_unreadable(self, name: str, reason: str) -> None:
        """Once, and again only for another reason."""
        if self._unreadable.get(name) != reason:
            log.warning("cannot validate %s, retrying every %.0f s: %s", name, READ_RETRY_SECONDS, reason)
        self._unreadable[name] = reason

    def _note_refusal(self, checkpoint: Checkpoint, error: OSError) -> None:
        """Once, and again only for another reason: it is tried every few seconds."""
        if self._refused is None or self._refused.errno != error.errno:
            log.error("cannot pin %s, retrying every %.0f s: %s. %s", checkpoint.name, PIN_RETRY_SECONDS, error, PIN_HINT)
        self._refused = error
