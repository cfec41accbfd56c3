"""The contract of what keeps versions. Every store must pass tests/contract. No foreign package here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ckptsync.checkpoint import Run, Snapshot, Version

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

    def fetch(self, version: Version, into: Path, *, progress: Progress) -> None:
        """Bring every file of a version into a folder and prove each against the manifest's digest.

        Files that are there already and prove right are kept. Raises IntegrityError for bytes that differ and for names that
        would leave the folder.
        """
        ...
