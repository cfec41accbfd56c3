"""The queue between watching and uploading, kept as folders so that a crash and a clean start look the same.

    PINNED ──▶ UPLOADED    spool/NAME → receipts/NAME.json
       ├─────▶ SUPERSEDED  a newer one went first
       ├─────▶ PARKED      parked/NAME, a permanent error, with its reason
       └─────▶ CHANGED     modified since; the checkpoint is pinned again

There is no UPLOADING: a crash in the middle leaves PINNED, which is true. NAME is `<checkpoint>.<print>`. Being in spool/ means
being queued. One process changes the spool, the one that holds the lock; any process may read it.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ckptsync import durable, state_folder, state_moves
from ckptsync.checkpoint import Checkpoint, Receipt, Snapshot
from ckptsync.errors import CkptsyncError, IntegrityError
from ckptsync.upload import snapshot
from ckptsync.upload.history import History
from ckptsync.upload.receipts import Receipts
from ckptsync.upload.save_markers import SaveMarkers

log = logging.getLogger(__name__)


RETRY_REQUEST = "retry-parked"
"""The file below .ckptsync by which another process asks the watcher to retry what is parked."""


def _readable(directory: Path) -> bool:
    """Whether its content is that of a snapshot. A file system that fails for a while (EIO) says nothing of it."""
    try:
        snapshot.load(directory)
    except IntegrityError:
        return False
    except OSError as error:
        log.warning("cannot read %s now: %s", directory.name, error)
    return True


class Spool:
    """The state of one output folder: `.ckptsync` in it, or beside it while a training starts with an empty one."""

    def __init__(
        self,
        output_dir: Path,
        *,
        run_id: str | None = None,
        store: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.output_dir = output_dir
        self.run_id = run_id
        self.store = store
        self.foreign: frozenset[str] = frozenset()
        """Names of what another run left in the queue, as `prepare` found it: it stays, and nothing here counts it."""
        self.undurable: set[str] = set()
        """Names of what is queued or parked, as this process knows it: also when the folder is gone that would say so."""
        self._clock = clock
        self._sequence: int | None = None

    @property
    def root(self) -> Path:
        """The folder at this moment: it leaves the output folder and comes back (`state_folder`)."""
        return state_folder.of(self.output_dir)

    @property
    def receipts(self) -> Receipts:
        """The proofs of what is durable."""
        return Receipts(self.root / "receipts", self.run_id, self.store)

    @property
    def markers(self) -> SaveMarkers:
        """What the training says of its saves."""
        return SaveMarkers(self.root / "complete")

    @property
    def history(self) -> History:
        """What happened in the output folder."""
        return History(self.root / "history.jsonl", self._clock)

    def make(self) -> None:
        """Make the folder."""
        state_folder.make(self.output_dir)

    def move_out(self) -> None:
        """Leave the output folder empty to a program that may insist on it."""
        with contextlib.suppress(OSError):
            state_moves.move_out(self.output_dir)

    def move_in(self, *, though_empty: bool = False) -> None:
        """Come back into an output folder that is no longer empty. Where that fails, the state stays where it is."""
        with contextlib.suppress(OSError):
            state_moves.move_in(self.output_dir, though_empty=though_empty)

    @property
    def lock_path(self) -> Path:
        """What one watcher locks."""
        return self.root / "lock"

    def prepare(self) -> list[str]:
        """Make the folders, finish what a crash interrupted, and return the names that were swept.

        Raises FileNotFoundError if there is no output folder.
        """
        self.make()
        for name in ("spool", "receipts", "parked", "torn", "incoming", "complete"):
            durable.make_inside(self.root / name)
        swept = [name for folder in ("", "spool", "receipts", "parked", "incoming") for name in durable.sweep(self.root / folder)]
        for directory in (*self._directories("spool"), *self._directories("parked")):
            swept += durable.sweep(directory)
        durable.remove_tree(self.root / "wandb")
        self.foreign = frozenset(self._find_foreign())
        for directory in self._directories("spool"):
            if directory.name in self.receipts:
                durable.remove_tree(directory)
                swept.append(directory.name)
            elif not _readable(directory):
                # It would wait for ever, and keep its checkpoint from being pinned again.
                durable.rename(directory, durable.make_inside(self.root / "torn") / f"{directory.name}-{self._clock():.0f}")
                self.history.record("unreadable", name=directory.name)
                swept.append(directory.name)
        parked = [directory.name for directory in self._directories("parked") if directory.name not in self.foreign]
        self.undurable = {*self.waiting(), *parked}
        return swept

    def pin(
        self,
        checkpoint: Checkpoint,
        *,
        attempt: int | None = None,
        latest: bool = True,
        alive: Callable[[], None] = lambda: None,
    ) -> Snapshot:
        """Put a checkpoint into the queue, as snapshot.pin does. Raises SnapshotChangedError when it changed meanwhile.

        Without `latest` it never counts as the one that was saved last.
        """
        sequence = self.next_sequence() if latest else 0
        folder = self.root / "spool" / f"{checkpoint.name}.{checkpoint.fingerprint}"
        pinned = snapshot.pin(checkpoint, folder, sequence=sequence, run_id=self.run_id, attempt=attempt, alive=alive)
        self.undurable.add(pinned.name)
        self.history.record("pinned", pinned, bytes=pinned.bytes, files=len(pinned.files), by=pinned.pinned_by)
        return pinned

    def pending(self) -> list[Snapshot]:
        """The queued snapshots, in the order of saving."""
        found = []
        for directory in self._directories("spool"):
            with contextlib.suppress(IntegrityError, OSError):
                found.append(snapshot.load(directory))
        found = [each for each in found if self._is_ours(each.run_id)]
        return sorted(found, key=lambda each: each.sequence)

    def waiting(self) -> list[str]:
        """The names of the queued snapshots, without reading them."""
        return [directory.name for directory in self._directories("spool") if directory.name not in self.foreign]

    def parked(self) -> list[tuple[Snapshot, str]]:
        """What a permanent error stopped, with its reason."""
        found = []
        for directory in self._directories("parked"):
            with contextlib.suppress(IntegrityError, OSError):
                reason = durable.read_json(directory / "reason.json") or {}
                pinned = snapshot.load(directory)
                if self._is_ours(pinned.run_id):
                    found.append((pinned, str(reason.get("reason", "no reason was kept"))))
        return found

    def torn(self) -> list[Path]:
        """What resume moved out of the way."""
        return self._directories("torn")

    def _find_foreign(self) -> Iterator[str]:
        for directory in (*self._directories("spool"), *self._directories("parked")):
            with contextlib.suppress(IntegrityError, OSError):
                if not self._is_ours(snapshot.load(directory).run_id):
                    yield directory.name

    def _is_ours(self, run_id: object) -> bool:
        """Whether something of that run counts here. What was written before runs were noted does."""
        return self.run_id is None or run_id is None or run_id == self.run_id

    def knows(self, name: str) -> bool:
        """Whether this very save of a checkpoint is queued, parked or durable already."""
        return name in self.receipts or (self.root / "spool" / name).exists() or (self.root / "parked" / name).exists()

    def attempt_of(self, checkpoint: str, fingerprint: str) -> int | None:
        """In which attempt this very save was made, as far as its marker, receipt or snapshot says."""
        name = f"{checkpoint}.{fingerprint}"
        said = self.markers.of(checkpoint, fingerprint).get("attempt")
        for value in (said, *((durable.read_json(path) or {}).get("attempt") for path in self._proofs(name))):
            if isinstance(value, int):
                return value
        return None

    def lost_save(self, attempt: int) -> str | None:
        """The last save of an attempt, by its marker, if it is neither in the output folder nor durable, queued or parked."""
        last = self.markers.last(attempt)
        if last is None or (self.output_dir / last).is_dir():
            return None
        snapshots = [*self.pending(), *(pinned for pinned, _ in self.parked())]
        known: list[Receipt | Snapshot] = [*self.receipts.of(last), *(each for each in snapshots if each.checkpoint == last)]
        return None if any(each.attempt in (None, attempt) for each in known) else last

    def note_scanned(self, newest: str, folders: Mapping[str, str]) -> None:
        """Keep what was in the output folder when that snapshot was pinned, or when the training was started after it.

        That is the name and the fingerprint of each checkpoint folder. What is missing there at the next start came after it,
        whatever the clock says.
        """
        durable.write_json(self.root / "scanned.json", {"version": 1, "newest": newest, "folders": dict(folders)}, mode=0o600)

    def scanned(self, newest: str) -> dict[str, str] | None:
        """The same, as it was kept for that snapshot; None where it was not."""
        value = durable.read_json(self.root / "scanned.json") or {}
        folders = value.get("folders")
        return folders if value.get("newest") == newest and isinstance(folders, dict) else None

    def _proofs(self, name: str) -> tuple[Path, ...]:
        snapshots = (self.root / folder / name / "snapshot.json" for folder in ("spool", "parked"))
        return (self.receipts.path(name), *snapshots)

    def commit(self, pinned: Snapshot, receipt: Receipt) -> None:
        """UPLOADED: the receipt first, so that a crash in between never uploads twice."""
        # It is durable, also where the folder is gone that would take the receipt.
        self.undurable.discard(pinned.name)
        self.receipts.keep(receipt)
        durable.remove_tree(pinned.directory)
        self.history.record(
            "uploaded",
            pinned,
            artifact=f"{receipt.artifact}:{receipt.version}",
            bytes=receipt.bytes,
            seconds=round(receipt.seconds, 3),
        )

    def supersede(self, dropped: Iterable[Snapshot], by: Snapshot, reason: str) -> None:
        """SUPERSEDED: record the event, then release the pin. The other way round, a crash in between would hide it."""
        for each in dropped:
            self.history.record("superseded", each, by=by.name, reason=reason)
            durable.remove_tree(each.directory)
            self.undurable.discard(each.name)

    def park(self, pinned: Snapshot, error: CkptsyncError) -> None:
        """PARKED: kept with the reason, out of the way of the next one."""
        durable.write_json(
            pinned.directory / "reason.json",
            {"version": 1, "reason": str(error), "hint": error.hint, "at": self._clock()},
        )
        target = self.root / "parked" / pinned.name
        shutil.rmtree(target, ignore_errors=True)
        durable.rename(pinned.directory, target)
        self.history.record("parked", pinned, reason=str(error))

    def unpark(self) -> list[str]:
        """Put everything that is parked back into the queue, and return the names."""
        names = []
        for directory in self._directories("parked"):
            if directory.name in self.foreign:
                continue
            durable.rename(directory, self.root / "spool" / directory.name)
            (self.root / "spool" / directory.name / "reason.json").unlink(missing_ok=True)
            names.append(directory.name)
        return names

    def parkings(self) -> dict[str, tuple[int, int]]:
        """What is parked, each with a value that changes when it is parked again."""
        found = {}
        for directory in self._directories("parked"):
            with contextlib.suppress(OSError):
                status = (directory / "reason.json").stat()
                found[directory.name] = (status.st_ino, status.st_mtime_ns)
        return found

    def request_retry(self) -> None:
        """Ask the watcher of this folder to retry what is parked."""
        durable.write_json(self.root / RETRY_REQUEST, {"version": 1, "at": self._clock()})

    def take_retry_request(self) -> bool:
        """Whether somebody asked for that; a request counts once."""
        try:
            (self.root / RETRY_REQUEST).unlink()
        except OSError:
            return False
        return True

    def discard(self, pinned: Snapshot) -> None:
        """CHANGED: the pin no longer holds what was accepted."""
        self.history.record("changed", pinned)
        if pinned.directory.exists():
            durable.remove_tree(pinned.directory)
            self.undurable.discard(pinned.name)

    def _directories(self, name: str) -> list[Path]:
        try:
            entries = sorted((self.root / name).iterdir())
        except FileNotFoundError:
            return []
        return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(durable.TEMPORARY)]

    def next_sequence(self) -> int:
        """One more than every pin before. Receipts hold theirs, so that a restart goes on counting."""
        if self._sequence is None:
            known = [each.sequence for each in self.pending()]
            known += [each.sequence for each, _ in self.parked()]
            known += [each.sequence for each in self.receipts]
            self._sequence = max(known, default=0)
        self._sequence += 1
        return self._sequence
