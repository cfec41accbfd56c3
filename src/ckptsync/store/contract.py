"""The contract of what keeps versions. Every store must pass tests/contract. No foreign package here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ckptsync.checkpoint import File, Problem, Run, Snapshot, Version

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from any thread, as often as the store likes."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What a snapshot becomes: the artifact's name, its aliases beside `latest`, and its metadata.

    `latest` goes to the new version, unless the field of that name says which version was saved later and has to keep it.
    """

    name: str
    aliases: tuple[str, ...]
    metadata: Mapping[str, Any]
    latest: str | None = None


class Store(Protocol):
    """Keeps versions of artifacts for one entity and project.

    No method tries again: retrying decides that for every store alike. Each raises TransientStoreError when trying again can
    help, PermanentStoreError when it can't, NotFoundError for a run, collection or version that isn't there.
    """

    def check(self, run: Run) -> Run:
        """The same run with its entity filled in, once the credentials were accepted. Raises RejectedError."""
        ...

    def put(self, snapshot: Snapshot, upload: Upload, *, progress: Progress) -> Version:
        """Keep the snapshot's files as a version and return it when it is committed and its manifest agrees.

        Atomic and idempotent: after a crash a version is whole or absent, and putting the same bytes again returns the version
        that holds them. Raises SnapshotChangedError when the files were rewritten meanwhile; no version is left then.
        """
        ...

    def attach(self, version: Version, run: Run) -> bool:
        """Add the version to the outputs of a run that is not ours, and touch nothing else of it; False when there is none."""
        ...

    def run_state(self, run: Run) -> str:
        """`running`, `finished`, `crashed` or `failed`. Raises NotFoundError, naming runs with a similar id."""
        ...

    def versions(self, name: str) -> list[Version]:
        """The committed versions of an artifact, newest first; empty when there is none."""
        ...

    def outputs(self, run: Run) -> list[Version]:
        """The models in a run's list of outputs, whatever they are called. Raises NotFoundError where the run isn't there."""
        ...

    def put_model(self, folder: Path, files: Sequence[File], upload: Upload) -> Version:
        """Keep some files of a folder as a version. Atomic and idempotent like `put`; bytes that the store has are not sent.

        Raises SnapshotChangedError when one of them is not (or no longer) the one that is listed; no version is left then.
        """
        ...

    def linked(self, version: Version) -> tuple[str, ...]:
        """Where a version is linked to, as PROJECT/COLLECTION: registries and portfolios."""
        ...

    def link(self, version: Version, target: str, aliases: Sequence[str] = ()) -> str:
        """Link a version into a collection, REGISTRY/COLLECTION with an optional organization before it; return its name there.

        Linking it again changes nothing but the aliases, which are added.
        """
        ...

    def delete(self, version: Version) -> bool:
        """Delete a version with its aliases for good; False, and nothing happens, where somebody wants it by now.

        That is: it has an alias that it didn't have when it was listed, or is linked. Done also when it is gone already.
        """
        ...

    def expire(self, version: Version, at: float) -> bool:
        """Have the store delete a version by itself at a time (seconds since the epoch); False as in `delete`."""
        ...

    def prove(self, version: Version, proved: set[str], *, progress: Progress) -> list[Problem]:
        """Read every byte of a version, keep none, and return the files that don't prove against the manifest's digest.

        Adds the names of those that do to `proved`; what is in it is not read again, so that another try goes on.
        """
        ...

    def fetch(self, version: Version, into: Path, *, progress: Progress) -> None:
        """Bring every file of a version into a folder and prove each against the manifest's digest.

        The folder is the caller's to lose: files that are there already and prove right are kept, and whatever else is in it
        is removed, so that it holds the version and nothing else. Raises IntegrityError for bytes that differ and for names that
        would leave the folder.
        """
        ...
