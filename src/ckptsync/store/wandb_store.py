"""W&B as a store: the bytes of a version are kept by W&B, hashed where they lie: nothing is staged, nothing cached."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ckptsync.checkpoint import File, Problem, Run, Snapshot, Version
from ckptsync.config import Connection
from ckptsync.durable import unchanged
from ckptsync.errors import NotFoundError, SnapshotChangedError, StoreError, TransientStoreError
from ckptsync.store.contract import Progress, Upload
from ckptsync.store.manifest import Entry, differing, entries_of, manifest_of
from ckptsync.store.version_files import VersionFiles
from ckptsync.store.wandb_catalogue import TYPE, WandbCatalogue, version_of
from ckptsync.store.wandb_client import Client

Algorithm = Literal["MD5", "XXH128"]

FASTEST: Algorithm = "XXH128"
"""XXH128 takes 0.05 s for a gigabyte, MD5 1.3 s (measured)."""


class WandbStore(WandbCatalogue):
    """Versions of W&B artifacts in one entity and project. One per process; `private` is as in `Client`."""

    def __init__(self, connection: Connection, run: Run, private: Path) -> None:
        super().__init__(Client(connection, run, private))
        self.id = connection.store
        self._algorithms: dict[str, Algorithm] = {}

    def put(self, snapshot: Snapshot, upload: Upload, *, progress: Progress) -> Version:
        """See Store. The version is logged by the run `ckptsync-<run_id>`, never by the training's own."""

        def add(artifact: Any) -> None:
            artifact.add_dir(str(snapshot.content), policy="immutable", skip_cache=True)
            progress(0, snapshot.bytes)

        version = self._commit(snapshot.name, snapshot.content, snapshot.files, upload, add)
        if upload.latest and upload.latest != version.version:
            run = self._client.entity_run()
            self._give_latest(f"{run.entity}/{run.project}/{upload.name}:{upload.latest}")
        progress(snapshot.bytes, snapshot.bytes)
        return version

    def put_model(self, folder: Path, files: Sequence[File], upload: Upload) -> Version:
        """See Store. Logged by the sync run, like a checkpoint."""

        def add(artifact: Any) -> None:
            for file in files:
                artifact.add_file(str(folder / file.path), name=file.path, policy="immutable", skip_cache=True)

        return self._commit(f"the model in {folder}", folder, files, upload, add)

    def fetch(self, version: Version, into: Path, *, progress: Progress) -> None:
        """See Store."""
        self._files(version).fetch(into, progress=progress)

    def prove(self, version: Version, proved: set[str], *, progress: Progress) -> list[Problem]:
        """See Store."""
        return self._files(version).prove(proved, progress=progress)

    def differing(self, version: Version, folder: Path, *, progress: Progress) -> list[str]:
        """See Store."""
        with self._client.translated(f"the look-up of the files of {version.name}:{version.version}"):
            entries = entries_of(self._client.api().artifact(version.qualified), version)
        return differing(entries.values(), folder, progress=progress)

    def measure(self, values: Mapping[str, float]) -> None:
        """Log how an upload went as metrics of the sync run."""
        with self._client.translated("the upload's metrics"):
            self._client.sync_run(self._client.entity_run()).log({f"ckptsync/{name}": value for name, value in values.items()})

    def rehearse(self) -> None:
        """Upload a tiny artifact, then delete it and its run: checks the permissions that uploads and prunes need."""
        run = self._client.entity_run()
        name = f"ckptsync-doctor-{secrets.token_hex(4)}"
        with self._client.translated("the rehearsal of an upload"):
            trial = self._client.wandb.init(
                entity=run.entity,
                project=run.project,
                id=name,
                name=name,
                job_type="checkpoint-sync",
                settings=self._client.settings,
            )
            artifact = self._client.wandb.Artifact(name, type=TYPE)
            with artifact.new_file("probe.txt") as file:
                file.write(name)
            trial.log_artifact(artifact).wait()
            trial.finish()
        with self._client.translated("the rehearsal of a deletion"):
            client = self._client.api()
            client.artifact(f"{run.entity}/{run.project}/{name}:v0").delete(delete_aliases=True)
            client.artifact_collection(TYPE, f"{run.entity}/{run.project}/{name}").delete()
            client.run(f"{run.entity}/{run.project}/{name}").delete()

    def _files(self, version: Version) -> VersionFiles:
        with self._client.translated(f"the look-up of the files of {version.name}:{version.version}"):
            return VersionFiles(self._client.api().artifact(version.qualified), version, self._client.translated)

    def _commit(self, what: str, folder: Path, files: Sequence[File], upload: Upload, add: Callable[[Any], None]) -> Version:
        """Hash files of a folder with `add` and upload them; return the committed version once its manifest agrees.

        Raises SnapshotChangedError when the files differ from the listing; no version remains then.
        """
        run = self._client.entity_run()
        self._client.names |= {upload.name, str(folder)}
        with self._client.translated(f"the upload of {what}"):
            artifact = self._artifact(run, upload)
            add(artifact)
        expected = _digests(artifact)
        if _sizes(expected) != {file.path: file.size for file in files} or not unchanged(folder, files):
            raise SnapshotChangedError(f"{what} changed while it was hashed")
        try:
            with self._client.translated(f"the upload of {what}"):
                logged = self._client.sync_run(run).log_artifact(artifact, aliases=["latest", *upload.aliases])
                logged.wait()
                committed = self._client.api().artifact(f"{run.entity}/{run.project}/{upload.name}:{logged.version}")
                agreed = self._agrees(committed, expected, folder)
        except StoreError:
            if not unchanged(folder, files):
                raise SnapshotChangedError(f"{what} changed while it was uploaded") from None
            raise
        if not agreed:
            raise TransientStoreError(f"the manifest of {committed.name} does not agree with {what}")
        if not folder.is_dir():
            # Somebody else finished with this snapshot: the version may be theirs, and is what they uploaded.
            raise SnapshotChangedError(f"{what} is gone; its version {committed.name} stays")
        if not unchanged(folder, files):
            with self._client.translated(f"the removal of {committed.name}"):
                committed.delete(delete_aliases=True)
            raise SnapshotChangedError(f"{what} changed while it was uploaded; its version was deleted")
        return version_of(committed)

    def _artifact(self, run: Run, upload: Upload) -> Any:
        """A new artifact, hashed with XXH128 where its collection accepts that: it costs 25 times less than MD5.

        Elsewhere the client would silently hash everything again with MD5, on one thread (wandb 0.31). The algorithm of the
        newest version decides; XXH128 where there is none or it can't be read.
        """
        if upload.name not in self._algorithms:
            self._algorithms[upload.name] = FASTEST
            with contextlib.suppress(NotFoundError), self._client.translated(f"the look-up of {upload.name}"):
                newest = self._client.api().artifact(f"{run.entity}/{run.project}/{upload.name}:latest")
                with contextlib.suppress(Exception):
                    self._algorithms[upload.name] = _algorithm(newest)
        algorithm = self._algorithms[upload.name]
        return self._client.wandb.Artifact(upload.name, type=TYPE, metadata=dict(upload.metadata), digest_algorithm=algorithm)

    def _agrees(self, committed: Any, expected: Mapping[str, tuple[int, str]], folder: Path) -> bool:
        """Whether a committed manifest matches what was hashed; where the store chose another algorithm, by hashing again."""
        actual = _digests(committed)
        if actual == expected:
            return True
        name = committed.name.partition(":")[0]
        if _algorithm(committed) == self._algorithms[name] or _sizes(actual) != _sizes(expected):
            return False
        self._algorithms[name] = _algorithm(committed)
        entries = [Entry.of(path, entry) for path, entry in manifest_of(committed).entries.items()]
        return not differing(entries, folder, progress=lambda *_: None)


def _algorithm(artifact: Any) -> Algorithm:
    """The algorithm that an artifact's files were hashed with, as the client's `digest_algorithm` accepts it.

    The artifact itself reports MD5 also where the server didn't answer about its features (wandb 0.31); its manifest is right.
    """
    fast = "XXH128" in str(artifact.digest_algorithm.value) or any(
        "XXH128" in str(entry.digest_algorithm().value) for entry in manifest_of(artifact).entries.values()
    )
    return "XXH128" if fast else "MD5"


def _digests(artifact: Any) -> dict[str, tuple[int, str]]:
    """Size in bytes and digest of each path in a manifest."""
    return {path: (int(entry.size or 0), str(entry.digest)) for path, entry in manifest_of(artifact).entries.items()}


def _sizes(digests: Mapping[str, tuple[int, str]]) -> dict[str, int]:
    return {path: size for path, (size, _) in digests.items()}
