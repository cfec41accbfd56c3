"""Which save continues which. Decides only, and never by a clock: modification times and two machines' clocks play no part.

A save belongs to an attempt, one start of the training; its order is (attempt, step). Where the attempt is unknown (a copied
folder, a program that ckptsync did not start) the logged rows are the witness: a save continues another one whose rows are a
prefix of its own. Where the rows of two saves don't begin at the same step, or there are none, the step
decides.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ckptsync.checkpoint import Receipt, Rows, Snapshot, TrainingState, Version
from ckptsync.record import Attempt

PrefixDigest = Callable[[int], str | None]
"""The digest over that many of a checkpoint's first rows; None where it has fewer, or can no longer be read."""


@dataclass(frozen=True, slots=True)
class Save:
    """What the lineage knows of a checkpoint, wherever it is: its step, its attempt, and the digest of its rows."""

    step: int
    attempt: int | None = None
    rows: Rows = Rows()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True)
class Position:
    """From where the training has to go on: its last save, or (`resumed`) the step that the current attempt began from."""

    save: Save
    resumed: bool = False


class Appearance(enum.Enum):
    """How a folder came to be noticed: there at the first scan, changed since, or created since.

    Only what was created, or what the training's own marker names, is certainly a save of the current attempt.
    """

    PRESENT = "present"
    CHANGED = "changed"
    CREATED = "created"


class Relation(enum.Enum):
    """What a save is to the position: the next one, one from before, or one of a training that restarted from scratch."""

    NEXT = "next"
    OLDER = "older"
    RESTARTED = "restarted"


def saved(step: int, state: TrainingState | None, attempt: int | None) -> Save:
    """A checkpoint as the lineage sees it."""
    return Save(step, attempt, state.rows) if state else Save(step, attempt)


def save_of(known: Receipt | Snapshot) -> Save:
    """The same for something that is durable or queued."""
    if isinstance(known, Receipt):
        return Save(known.step, known.attempt, known.rows)
    return saved(known.step, known.state, known.attempt)


Known = TypeVar("Known", Receipt, Snapshot, Receipt | Snapshot)


def newest(known: Iterable[Known]) -> Known | None:
    """The save that was pinned last; of a snapshot and its receipt the snapshot."""
    return max(known, key=lambda each: (each.sequence, isinstance(each, Snapshot)), default=None)


def newest_name(known: Iterable[Receipt | Snapshot]) -> str | None:
    """The name of the snapshot that was pinned last, None where there is none."""
    found = newest(known)
    return found.snapshot if isinstance(found, Receipt) else found.name if found else None


def position(attempt: Attempt | None, known: Iterable[Receipt | Snapshot]) -> Position | None:
    """Where the training has come to; None at the very first start. `known` is what is durable or queued.

    An attempt without a save of its own counts from the step that it resumed from. One that resumed from nothing although there
    are saves has to get beyond them: it restarted from scratch.
    """
    found = newest(known)
    last = save_of(found) if found else None
    begun = attempt is not None and (last is None or (last.attempt or 0) < attempt.number)
    if attempt is None or not begun or (attempt.resumed_step is None and last is None):
        return Position(last) if last else None
    step = attempt.resumed_step if attempt.resumed_step is not None else last.step if last else 0
    same = last if last and last.step == step and attempt.resumed_step is not None else Save(step)
    return Position(Save(step, attempt.number, same.rows), resumed=True)


def relation(
    save: Save,
    before: Position | None,
    appearance: Appearance,
    *,
    own: PrefixDigest,
    theirs: PrefixDigest,
    marked: bool = False,
    doubted: bool = False,
) -> Relation:
    """What a complete checkpoint is to the position. `own` reads the save's rows, `theirs` those of the position.

    `marked` says that the training itself named the save's attempt. Where it was only inferred, the first save after a resume has
    to show by its rows that it continues. Where it is `doubted` that the training got its checkpoint, rows are no proof: with the
    same seed a training that starts over logs the same losses.
    """
    if before is None:
        return Relation.NEXT
    last = before.save
    if before.resumed and save.step == last.step and appearance is Appearance.PRESENT:
        # The very checkpoint that was resumed from, saved when nobody watched: it has yet to become durable.
        return Relation.NEXT
    if save.attempt is not None and last.attempt is not None and save.attempt != last.attempt:
        return Relation.NEXT if save.attempt > last.attempt else Relation.OLDER
    if save.step < last.step or (before.resumed and save.step == last.step):
        return _behind(save, last, appearance, theirs)
    numbered = save.attempt is not None and save.attempt == last.attempt
    certain = save.step == last.step or (numbered and (marked or not before.resumed))
    continues = not doubted and (not save.rows.comparable(last.rows) or own(last.rows.count) == last.rows.digest)
    if certain or continues:
        return Relation.NEXT
    return Relation.OLDER if appearance is Appearance.PRESENT else Relation.RESTARTED


def _behind(save: Save, last: Save, appearance: Appearance, theirs: PrefixDigest) -> Relation:
    """A save that is not above the position: an old folder that somebody touched, or a training that restarted."""
    if appearance is Appearance.CREATED:
        return Relation.RESTARTED
    if appearance is Appearance.CHANGED and save.rows.comparable(last.rows):
        return Relation.OLDER if theirs(save.rows.count) in (None, save.rows.digest) else Relation.RESTARTED
    return Relation.OLDER


def continues(version: Version, save: Save, own: PrefixDigest) -> bool:
    """Whether a save goes on from that version: the version's rows are the first of its own. `own` reads the save's rows.

    That counts for more than the attempts: two folders may have counted them each for itself.
    """
    theirs = version.rows
    goes_on = version.step is not None and save.step > version.step
    return goes_on and save.rows.comparable(theirs) and own(theirs.count) == theirs.digest


def is_later(version: Version, save: Save) -> bool:
    """Whether a version of the same run, from another folder, was saved after this save: by (attempt, step).

    A save that nobody numbered is of the newest attempt, and a version that nobody numbered is of an attempt before all others.
    """
    if save.attempt is None or version.attempt == save.attempt:
        return version.step is not None and version.step > save.step
    return version.attempt is not None and version.attempt > save.attempt


UNNUMBERED = -(2**61)
"""Attempts below those that were numbered: of versions that say nothing of theirs (ckptsync 0.1.0, HF's WandbCallback)."""


def attempts_of(versions: Sequence[Version]) -> dict[str, int]:
    """The attempt of each version. One that doesn't say belongs to the newest that was committed before it.

    Where there is none of these, the holder of `latest` was saved last, and the step orders the rest.
    """
    numbered = [(each.name, each.number, each.attempt) for each in versions if each.attempt is not None]
    found = {each.qualified: each.attempt for each in versions if each.attempt is not None}
    for version in versions:
        if version.attempt is None:
            before = [attempt for name, number, attempt in numbered if name == version.name and number < version.number]
            found[version.qualified] = max(before, default=UNNUMBERED + ("latest" in version.aliases))
    return found
