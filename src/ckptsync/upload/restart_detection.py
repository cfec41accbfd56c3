"""Where the training has come to, and whether a complete checkpoint continues it. Asks `lineage`, and keeps what it answered.

A checkpoint that doesn't is left alone with the reason logged; one that shows a restart from scratch is an error of its attempt.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptsync import layouts, record
from ckptsync.checkpoint import Checkpoint, Receipt, Snapshot
from ckptsync.errors import HookMissingError, RestartedError, TrainedAgainError
from ckptsync.upload import lineage
from ckptsync.upload.lineage import Appearance, Position, Relation, Save
from ckptsync.upload.quiet_period import QuietFolder
from ckptsync.upload.spool import Spool

log = logging.getLogger(__name__)


class RestartDetection:
    """The position of one training. `restarted` is the error of one that restarted from scratch, None for one that goes on."""

    def __init__(self, spool: Spool, *, allow_restart: bool) -> None:
        self.restarted: RestartedError | None = None
        self._spool = spool
        self._allow_restart = allow_restart
        self._before: Position | None = None
        self._before_path: Path | None = None
        self._attempt: record.Attempt | None = None
        self._recorded: tuple[int, int] | None = None
        self._warned_of: int | None = None

    def take_up(self, known: Sequence[Receipt | Snapshot]) -> None:
        """Continue from what is durable or queued. A verdict on an earlier attempt ends with that attempt.

        What is queued counts: what one of them superseded must not be pinned after it, or `latest` would go back.
        """
        self._recorded = self._stamp()
        current = record.read(self._spool.output_dir)
        self._attempt = current.attempt
        self._before = lineage.position(self._attempt, known)
        self._before_path = None if self._before is None else self._spool.output_dir / f"checkpoint-{self._before.save.step}"
        self._read_verdict(current)

    def take_up_verdict(self) -> None:
        """Read from run.json whether another watcher found that the current attempt restarted from scratch."""
        stamp = self._stamp()
        if stamp != self._recorded:
            self._recorded = stamp
            self._read_verdict(record.read(self._spool.output_dir))

    def _read_verdict(self, current: record.Record) -> None:
        number = current.attempt.number if current.attempt else None
        if current.restarted is None or current.restarted.attempt != number:
            self.restarted = None
        elif self.restarted is None and number is not None:
            kind = TrainedAgainError if _trained_again(current) else RestartedError
            self.restarted = kind(f"attempt {number} of the training started over; nothing of it is uploaded")

    @property
    def attempt_changed(self) -> bool:
        """Whether run.json names another attempt than the one that was taken up: the training was started again."""
        stamp = self._stamp()
        if stamp == self._recorded:
            return False
        self._recorded = stamp
        return record.read(self._spool.output_dir).attempt != self._attempt

    def is_older(self, folder: QuietFolder) -> bool:
        """Whether a folder, by its name and marker alone, was there before the first scan and lies behind the position."""
        if self._before is None or folder.appearance is not Appearance.PRESENT:
            return False
        last, attempt = self._before.save, _attempt_in(self._marker(folder))
        return folder.step < last.step and (attempt is None or last.attempt is None or attempt <= last.attempt)

    def accepts(self, folder: QuietFolder, checkpoint: Checkpoint) -> bool:
        """Whether a complete checkpoint is the next save of this training. Raises OSError where its rows can't be read now."""
        marker = self._marker(folder)
        if marker.get("run") not in (None, self._spool.run_id):
            log.warning("skipping %s: run %s saved it, not %s", folder.name, marker["run"], self._spool.run_id)
            return False
        appearance = self._appearance(folder, checkpoint, marker)
        if appearance is None:
            log.info("skipping %s: it is durable; other files in it changed since", folder.name)
            return False
        attempt = _attempt_in(marker)
        inferred = self._attempt.number if self._attempt and appearance is Appearance.CREATED else None
        save = lineage.saved(folder.step, checkpoint.verdict.state, attempt or inferred)
        if attempt is None:
            self._warn_of_lost_hook(folder)
        missing = attempt is None and record.hook_missing(self._spool.output_dir) is not None
        doubted = missing and appearance is Appearance.CREATED
        try:
            found = self._relation(save, appearance, folder.path, marked=attempt is not None, doubted=doubted)
        except FileNotFoundError as error:
            log.info("skipping %s: deleted while it was examined: %s", folder.name, error)
            return False
        if found is Relation.OLDER:
            log.info("skipping %s: older than step %d, which is pinned already", folder.name, self.step)
            return False
        if not self._allow_restart and (found is Relation.RESTARTED or self._belongs_to_restart(save)):
            self._note_restart(checkpoint, HookMissingError if missing else RestartedError)
            return False
        self.restarted = None
        return True

    def _warn_of_lost_hook(self, folder: QuietFolder) -> None:
        """Warn at an attempt's first save, rather than at its restart, that no checkpoint can be handed over to this training."""
        number = self._attempt.number if self._attempt else None
        if folder.appearance is Appearance.PRESENT or number == self._warned_of:
            return
        self._warned_of = number
        if record.hook_lost(self._spool.output_dir) and record.hook_missing(self._spool.output_dir) is None:
            reason = "so a restart can't hand over a checkpoint to it"
            log.warning("the hook does not reach this training, %s. %s", reason, HookMissingError.hint)

    def attempt_of(self, folder: QuietFolder) -> int | None:
        """The attempt of a checkpoint that was accepted: as the training marked it, else the current one if it came during it."""
        current = self._attempt.number if self._attempt and folder.appearance is not Appearance.PRESENT else None
        return _attempt_in(self._marker(folder)) or current

    def advance(self, pinned: Snapshot, path: Path) -> None:
        """The position is that save now; `path` is its checkpoint folder."""
        self._before, self._before_path = Position(lineage.save_of(pinned)), path

    def _marker(self, folder: QuietFolder) -> Mapping[str, Any]:
        return self._spool.markers.of(folder.name, folder.fingerprint)

    def _appearance(self, folder: QuietFolder, checkpoint: Checkpoint, marker: Mapping[str, Any]) -> Appearance | None:
        """How the save appeared, by the folder, its marker and the receipts of its step; None where this very save is durable.

        What was there before the first scan stays that: the marker of an old save is no news.
        """
        if folder.appearance is Appearance.CREATED or (marker and folder.appearance is Appearance.CHANGED):
            return Appearance.CREATED
        durable = [each for each in self._spool.receipts.of(folder.name) if each.state_digest]
        state = checkpoint.verdict.state
        same = [each for each in durable if state and each.state_digest == state.digest]
        if not same:
            return Appearance.CREATED if durable else folder.appearance
        # The same training saves the same state again, but its files anew. A receipt of ckptsync 0.1.0 doesn't know them.
        return None if {each.saved_print for each in same} & {layouts.saved_print(checkpoint.files), ""} else folder.appearance

    def _relation(self, save: Save, appearance: Appearance, path: Path, *, marked: bool, doubted: bool) -> Relation:
        def theirs(count: int) -> str | None:
            return layouts.rows_digest(self._before_path, count) if self._before_path else None

        return lineage.relation(
            save,
            self._before,
            appearance,
            own=lambda count: _own_rows(path, save, count),
            theirs=theirs,
            marked=marked,
            doubted=doubted,
        )

    def _belongs_to_restart(self, save: Save) -> bool:
        """Whether a save above the position is still one of the training that restarted from scratch, by now further on.

        A new attempt ends the verdict, and so do rows that continue those of the position.
        """
        if self.restarted is None or self._before is None:
            return False
        return save.attempt is not None or not save.rows.comparable(self._before.save.rows)

    def _note_restart(self, checkpoint: Checkpoint, kind: type[RestartedError]) -> None:
        number = self._attempt.number if self._attempt else None
        if kind is RestartedError and _trained_again(record.read(self._spool.output_dir)):
            kind = TrainedAgainError
        record.note_restarted(self._spool.output_dir, number, f"{checkpoint.name}.{checkpoint.fingerprint}")
        if self.restarted is not None:
            return
        before = self.step
        if kind is HookMissingError:
            reason = f"was saved by a training that did not get checkpoint-{before} from the hook"
        elif kind is TrainedAgainError:
            reason = "was saved by a further train() of the same process in this output_dir"
        else:
            reason = f"is not above step {before}" if checkpoint.step <= before else f"does not continue step {before}"
        self.restarted = kind(f"{checkpoint.name} {reason}, so the training started over; nothing of it is uploaded")
        self._spool.history.record("restarted", checkpoint=checkpoint.name, step=checkpoint.step, before=before)
        log.error("%s. %s", self.restarted, self.restarted.hint)

    @property
    def step(self) -> int:
        """The step of the position, 0 where there is none."""
        return self._before.save.step if self._before else 0

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = record.path_of(self._spool.output_dir).stat()
        except OSError:
            return None
        # Every update renames a new file into place.
        return status.st_ino, status.st_mtime_ns


def _own_rows(path: Path, save: Save, count: int) -> str | None:
    """The digest over the first rows of a save. That they can't be read is no sign of a restart: raises OSError."""
    digest = layouts.rows_digest(path, count)
    if digest is None and count <= save.rows.count:
        path.stat()
        raise OSError(errno.EIO, "its rows cannot be read", str(path))
    return digest


def _trained_again(known: record.Record) -> bool:
    """Whether the newest attempt is a further `train()` of a process that had trained into this folder, as it says itself."""
    value, attempt = known.values.get("trained_again"), known.attempt
    return isinstance(value, dict) and attempt is not None and value.get("attempt") == attempt.number


def _attempt_in(marker: Mapping[str, Any]) -> int | None:
    value = marker.get("attempt")
    return value if isinstance(value, int) else None
