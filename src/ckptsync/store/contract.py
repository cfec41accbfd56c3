"""The contract that every store of versions fulfils. Imports no foreign package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ckptsync.checkpoint import File, Problem, Run, Snapshot, Version

Progress = Callable[[int, int], None]
"""Called with (bytes done, total bytes), from any thread, at any rate."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What a snapshot becomes: the artifact's name, its aliases beside `latest`, and its metadata.

    The alias `latest` moves to the new version, unless the field `latest` names a version that was saved later and keeps it.
    """

    name: str
    aliases: tuple[str, ...]
    metadata: Mapping[str, Any]
    latest: str | None = None


class Store(Protocol):
    """Keeps versions of artifacts for one entity and project.

    No method retries: `retrying` does that for every store alike. Each raises TransientStoreError when a retry can help,
    PermanentStoreError when it can't, and NotFoundError for a run, collection or version that doesn't exist.
    """

    id: str
    """Identifies the store in a receipt (`Connection.store`)."""

    def check(self, run: Run) -> Run:
        """The same run with its entity filled in, once the credentials were accepted. Raises RejectedError."""
        ...

    def put(self, snapshot: Snapshot, upload: Upload, *, progress: Progress) -> Version:
        """Upload the snapshot's files and return the version once it is committed and its manifest agrees.

        Atomic and idempotent: after a crash a version is complete or absent, and putting the same bytes again returns the version
        that holds them. Raises SnapshotChangedError when the files changed meanwhile; no version remains then.
        """
        ...

    def attach(self, version: Version, run: Run) -> bool:
        """Add the version to the outputs of the training's run and change nothing else of it; False when there is no such run."""
        ...

    def run_state(self, run: Run) -> str:
        """`running`, `finished`, `crashed` or `failed`. Raises NotFoundError, naming runs with a similar id."""
        ...

    def versions(self, name: str) -> list[Version]:
        """The committed versions of an artifact, newest first; empty when there is none."""
        ...

    def latest(self, name: str) -> Version | None:
        """The version of an artifact that has the alias `latest`; None when there is none."""
        ...

    def outputs(self, run: Run) -> list[Version]:
        """The artifacts of type `model` among a run's outputs, under any name. Raises NotFoundError when there is no such run."""
        ...

    def put_model(self, folder: Path, files: Sequence[File], upload: Upload) -> Version:
        """Upload some files of a folder as a version. Atomic and idempotent like `put`; bytes that the store has are not sent.

        Raises SnapshotChangedError when a file differs from its listing; no version remains then.
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
        """Delete a version with its aliases; False, and nothing is deleted, when it is in use.

        In use means linked, or given an alias since it was listed. True also when the version no longer exists.
        """
        ...

    def expire(self, version: Version, at: float) -> bool:
        """Set when the store deletes a version by itself (seconds since the epoch); False as in `delete`."""
        ...

    def prove(self, version: Version, proved: set[str], *, progress: Progress) -> list[Problem]:
        """Read every byte of a version, keep none, and return the files that don't match the manifest's digest.

        Adds the names of those that match to `proved`, and skips files named in it, so that a retry continues.
        """
        ...

    def differing(self, version: Version, folder: Path, *, progress: Progress) -> list[str]:
        """The paths of a version's files that a local folder lacks, or has with another size or digest than the manifest's.

        Reads the folder and the manifest, and no byte of the version. Raises IntegrityError for a malformed manifest.
        """
        ...

    def fetch(self, version: Version, into: Path, *, progress: Progress) -> None:
        """Download every file of a version into a folder and verify each against the manifest's digest.

        Files in the folder that match already are kept and everything else in it is deleted, so that it holds the version and
        nothing else. Raises IntegrityError for bytes that differ and for names that
        would leave the folder.
        """
        ...
