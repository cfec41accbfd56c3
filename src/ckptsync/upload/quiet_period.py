"""Finds new checkpoint folders, and waits until each has been quiet for a while. Looks at names, sizes and times, not at content.

A scan costs one listing of the output folder and two stats for each checkpoint in it; only folders that changed since they were
decided on are listed inside. The wall clock plays no part: a folder is quiet when its fingerprint stays the same for the quiet
period.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptsync import durable, layouts
from ckptsync.checkpoint import fingerprint, step_of
from ckptsync.upload.lineage import Appearance


@dataclass(frozen=True, slots=True)
class QuietFolder:
    """A checkpoint folder that is quiet: the fingerprint of its files, and how it was noticed.

    Neither files nor paths are kept: of 5,000 checkpoints they are 13 MB.
    """

    output_dir: Path
    name: str
    fingerprint: str
    appearance: Appearance

    @property
    def path(self) -> Path:
        """The folder."""
        return self.output_dir / self.name

    @property
    def step(self) -> int:
        """As its name says it."""
        return step_of(self.name) or 0


@dataclass(slots=True)
class _Candidate:
    sign: int
    fingerprint: str
    appearance: Appearance
    since: float
    noticed: int
    postponed: bool = False


class QuietPeriod:
    """The checkpoint folders of one output folder, and since when each is unchanged.

    `quiet` is in seconds. `markers` is the folder where a callback inside the training notes each finished save: a save with a
    marker doesn't have to wait.
    """

    def __init__(self, output_dir: Path, markers: Path, *, quiet: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._output_dir = output_dir
        self.markers = markers
        self.quiet = quiet
        self._clock = clock
        self._done: dict[str, tuple[int, str, int]] = {}
        self._before: Mapping[str, str] | None = None
        self._present: set[str] | None = None
        self._refused: dict[str, str] = {}
        self._candidates: dict[str, _Candidate] = {}
        self._known: frozenset[str] | None = None
        self._refused_appearance: dict[str, tuple[Appearance, int]] = {}
        self._scans = 0
        self.cost = 0.0
        self.unlisted: dict[str, str] = {}
        """Folders on which a decision is due, and that could not be listed at the last scan (EIO, EACCES), with the reason."""
        self.linked: frozenset[str] = frozenset()
        """What is a symbolic link to a checkpoint, as of the last scan: links are not followed."""
        self.fresh = False
        """Whether the last scan found a folder being written that the scan before had not."""

    def scan(self) -> list[QuietFolder]:
        """The quiet folders that need a decision, by step. Every one has to be given to one of the methods below."""
        started = time.perf_counter()
        self._scans += 1
        seen = self.names()
        for gone in self._candidates.keys() - seen:
            del self._candidates[gone]
        for gone in self._refused_appearance.keys() - seen:
            del self._refused_appearance[gone]
        self.unlisted.clear()
        before = self._candidates.keys() & seen
        for name in seen:
            self._consider(name, self._appearance(name))
        self._known = frozenset(seen)
        self.fresh = bool(self._candidates.keys() - before)
        quiet = [self._quiet(name) for name in self._candidates if self._is_quiet(name)]
        self.cost = time.perf_counter() - started
        return sorted(quiet, key=lambda each: each.step)

    def accept(self, folder: QuietFolder) -> None:
        """Decided: leave the folder alone until something in it changes."""
        sign = self._candidates.pop(folder.name).sign
        self._done[folder.name] = (sign, folder.fingerprint, _weights(folder.path))

    def refuse(self, folder: QuietFolder) -> None:
        """Incomplete: offer it again when any file in it changes, even one that is written in place."""
        noticed = self._candidates.pop(folder.name).noticed
        self._refused[folder.name] = folder.fingerprint
        self._refused_appearance[folder.name] = folder.appearance, noticed

    @property
    def folders(self) -> dict[str, str]:
        """What is in the output folder, as of the last scan: the fingerprint of each checkpoint folder that was decided on."""
        return {name: found for name, (_, found, _) in self._done.items() if self._known is None or name in self._known}

    def remember(self, folders: Mapping[str, str]) -> None:
        """What the folders were when the newest save was pinned, or when the training was started after that.

        What is still as it was then is no save of the training that runs now.
        """
        self._before = folders
        for name, candidate in self._candidates.items():
            if folders.get(name) == candidate.fingerprint:
                candidate.appearance = Appearance.PRESENT

    def note_present(self) -> None:
        """Note what is there before the training starts: at the first scan it may have saved already."""
        if self._known is None:
            with contextlib.suppress(OSError):
                self._present = self.names()

    def forget(self, name: str) -> None:
        """Treat it as new at the next scan: it is no longer accepted."""
        self._done.pop(name, None)

    def overtake(self, folder: QuietFolder) -> None:
        """That save is pinned: what is below it, and was noticed no later, is none of a restart from scratch since."""
        limit = self._candidates[folder.name].noticed
        for name, candidate in self._candidates.items():
            if candidate.noticed <= limit and (step_of(name) or 0) < folder.step:
                candidate.appearance = Appearance.PRESENT
        for name, (_, noticed) in list(self._refused_appearance.items()):
            if noticed <= limit and (step_of(name) or 0) < folder.step:
                self._refused_appearance[name] = Appearance.PRESENT, noticed

    def postpone(self, folder: QuietFolder, seconds: float) -> None:
        """Offer it again after that time, if nothing changes in it before."""
        candidate = self._candidates[folder.name]
        candidate.since, candidate.postponed = self._clock() + seconds - self.quiet, True

    def end_postponements(self) -> None:
        """Offer what was postponed at the next scan: there may be no later one."""
        for candidate in self._candidates.values():
            if candidate.postponed:
                candidate.since = min(candidate.since, self._clock() - self.quiet)

    @property
    def unfinished(self) -> list[str]:
        """The folders on which a decision is still due, by step."""
        return sorted(self._candidates, key=lambda name: step_of(name) or 0)

    def watches(self, name: str) -> bool:
        """Whether a decision on that folder is still due."""
        return name in self._candidates

    @property
    def changing(self) -> bool:
        """Whether a decision is due on a folder that was not postponed."""
        return any(not candidate.postponed for candidate in self._candidates.values())

    @property
    def unsettled(self) -> bool:
        """Whether some folder is still being written, so that the next scan should come soon."""
        return bool(self._candidates)

    def names(self) -> set[str]:
        """The checkpoint folders that are there."""
        try:
            with os.scandir(self._output_dir) as entries:
                named = [entry for entry in entries if step_of(entry.name) is not None]
                self.linked = frozenset(entry.name for entry in named if entry.is_symlink())
                return {entry.name for entry in named if entry.is_dir(follow_symlinks=False)}
        except FileNotFoundError:
            return set()

    def _appearance(self, name: str) -> Appearance:
        if self._known is not None:
            return Appearance.CHANGED if name in self._known else Appearance.CREATED
        if self._before is None:
            return Appearance.CREATED if self._present is not None and name not in self._present else Appearance.PRESENT
        return Appearance.CHANGED if name in self._before else Appearance.CREATED

    def _consider(self, name: str, appearance: Appearance) -> None:
        path = self._output_dir / name
        try:
            sign = _sign(path)
            if name not in self._candidates and name not in self._refused and self._done.get(name, (None,))[0] == sign:
                return
            files = layouts.list_files(path)
        except (FileNotFoundError, NotADirectoryError):
            # It vanished during the scan: rotation is a normal event.
            self._candidates.pop(name, None)
            return
        except OSError as error:
            if name not in self._done:
                self.unlisted[name] = f"cannot be listed: {error.strerror or error}"
            return
        found = fingerprint(files)
        if self._refused.get(name) == found:
            return
        if (self._known is None or name not in self._known) and self._before and self._before.get(name) == found:
            appearance = Appearance.PRESENT
        self._refused.pop(name, None)
        candidate = self._candidates.get(name)
        if candidate is None or candidate.fingerprint != found:
            # A save takes several scans: what was created stays so until somebody has decided on it.
            new = appearance, self._scans
            appearance, noticed = (
                (candidate.appearance, candidate.noticed) if candidate else self._refused_appearance.pop(name, new)
            )
            if appearance is Appearance.CHANGED and self._saved_again(name):
                appearance = Appearance.CREATED
            self._candidates[name] = _Candidate(sign, found, appearance, self._clock(), noticed)

    def _saved_again(self, name: str) -> bool:
        """Whether the weights are other files than before: safetensors renames them into place; who touches a file doesn't."""
        before = self._done.get(name)
        return before is not None and before[2] != _weights(self._output_dir / name)

    def _quiet(self, name: str) -> QuietFolder:
        candidate = self._candidates[name]
        return QuietFolder(self._output_dir, name, candidate.fingerprint, candidate.appearance)

    def _is_quiet(self, name: str) -> bool:
        candidate = self._candidates[name]
        if self._clock() - candidate.since >= self.quiet:
            return True
        marker = durable.read_json(self.markers / name)
        return marker is not None and marker.get("print") == candidate.fingerprint


def _weights(path: Path) -> int:
    """What a save changes and a touch doesn't: the inodes of the safetensors files."""
    try:
        with os.scandir(path) as entries:
            return hash(tuple(sorted(entry.inode() for entry in entries if entry.name.endswith(".safetensors"))))
    except OSError:
        return 0


def _sign(path: Path) -> int:
    """What a re-save changes: the folder's mtime (safetensors is renamed into it) or trainer_state.json (rewritten in place).

    As one number: thousands of them are kept.
    """
    folder = path.stat()
    try:
        state = (path / "trainer_state.json").stat()
    except OSError:
        return hash((folder.st_mtime_ns,))
    return hash((folder.st_mtime_ns, state.st_mtime_ns, state.st_size))
