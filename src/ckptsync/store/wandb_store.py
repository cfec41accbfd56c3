"""W&B as a store: the only module that imports wandb; what it raises leaves here as ours.

The process that uses it belongs to ckptsync: wandb's folders are pointed to a private place, its own retries are cut short so
that retrying rules, and the live training run is never initialised here (a second `wandb.init` on it would mark it as finished;
wandb 0.31, measured). Files are hashed where they lie: nothing is staged, nothing cached.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from ckptsync.checkpoint import File, Problem, Run, Snapshot, Version
from ckptsync.config import Connection
from ckptsync.durable import unchanged
from ckptsync.errors import NotFoundError, RejectedError, SnapshotChangedError, StoreError, TransientStoreError
from ckptsync.store.client_errors import translated
from ckptsync.store.contract import Progress, Upload
from ckptsync.store.manifest import Entry
from ckptsync.store.version_files import READERS, VersionFiles

TYPE = "model"
"""The type of every collection that holds checkpoints: a collection has one type, and HF's WandbCallback uses this one."""

PRIVATE = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR", "WANDB_CONFIG_DIR")
INHERITED = (
    *("WANDB_SERVICE", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_MODE"),
    *("WANDB_SWEEP_ID", "WANDB_NOTES", "WANDB_TAGS", "WANDB_RESUME_FROM", "WANDB_FORK_FROM"),
)
"""What a training's environment says about its own run; in our process it would make us that run."""

REGISTRY = "wandb-registry-"
"""How the projects are named that are registries."""

Algorithm = Literal["MD5", "XXH128"]

FASTEST: Algorithm = "XXH128"
"""XXH128 takes 0.05 s for a gigabyte, MD5 1.3 s (measured)."""


class WandbStore:
    """Versions of W&B artifacts in one entity and project.

    `private` is a folder for the files that the client writes about itself; whoever makes the store removes it. One per process:
    the client's state is the process's.
    """

    def __init__(self, connection: Connection, run: Run, private: Path) -> None:
        for name in INHERITED:
            os.environ.pop(name, None)
        for name in PRIVATE:
            folder = private / name.lower()
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[name] = str(folder)
        os.environ |= connection.environment() | {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}

        import wandb
        from wandb.errors import term

        self._wandb = wandb
        self._connection = connection
        self._run = run
        self._sync_run: Any = None
        self._algorithms: dict[str, Algorithm] = {}
        self._names = _names(run)
        self._settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_graphql_retry_max=1,
            x_graphql_retry_wait_min_seconds=0.2,
            x_graphql_retry_wait_max_seconds=1.0,
            x_file_transfer_retry_max=1,
            x_file_transfer_retry_wait_min_seconds=0.2,
            x_file_transfer_retry_wait_max_seconds=1.0,
            init_timeout=30.0,
            finish_timeout=15.0,
        )
        # Settings silence a run; this silences what the client prints without one ("Adding directory to artifact").
        term.termsetup(self._settings, None)
        self._api: Any = None

    def check(self, run: Run) -> Run:
        """See Store."""
        with self._translated("the log-in"):
            # Also where the entity is given: making the client is what proves the key.
            client = self._client()
            entity = run.entity or client.default_entity
        if not entity:
            raise RejectedError("the W&B key belongs to no entity", hint="Give --entity, or set WANDB_ENTITY.")
        self._run = Run(run.run_id, run.project, entity)
        self._names |= _names(self._run)
        return self._run

    def put(self, snapshot: Snapshot, upload: Upload, *, progress: Progress) -> Version:
        """See Store. The version is logged by the run `ckptsync-<run_id>`, never by the training's own."""

        def add(artifact: Any) -> None:
            artifact.add_dir(str(snapshot.content), policy="immutable", skip_cache=True)
            progress(0, snapshot.bytes)

        version = self._commit(snapshot.name, snapshot.content, snapshot.files, upload, add)
        if upload.latest and upload.latest != version.version:
            run = self._require_entity()
            self._give_latest(f"{run.entity}/{run.project}/{upload.name}:{upload.latest}")
        progress(snapshot.bytes, snapshot.bytes)
        return version

    def attach(self, version: Version, run: Run) -> bool:
        """See Store. One read and one CreateArtifact name the run: its history, config and state stay as they are.

        The read comes first, so that no run is made by accident, and once in the life of this process.
        """
        api = self._client()
        try:
            with self._translated(f"adding {version.name}:{version.version} to run {run}"):
                target = api.run(f"{run.entity}/{run.project}/{run.run_id}")
                target.log_artifact(api.artifact(version.qualified))
        except NotFoundError:
            return False
        return True

    def measure(self, values: Mapping[str, float]) -> None:
        """Log how an upload went as metrics of the sync run."""
        with self._translated("the upload's metrics"):
            self._open_sync_run(self._require_entity()).log({f"ckptsync/{name}": value for name, value in values.items()})

    def rehearse(self) -> None:
        """Upload a tiny artifact and delete it again, with the run that did it: what an upload and a prune need to be allowed."""
        run = self._require_entity()
        name = f"ckptsync-doctor-{secrets.token_hex(4)}"
        with self._translated("the rehearsal of an upload"):
            trial = self._wandb.init(
                entity=run.entity, project=run.project, id=name, name=name, job_type="checkpoint-sync", settings=self._settings
            )
            artifact = self._wandb.Artifact(name, type=TYPE)
            with artifact.new_file("probe.txt") as file:
                file.write(name)
            trial.log_artifact(artifact).wait()
            trial.finish()
        with self._translated("the rehearsal of a deletion"):
            client = self._client()
            client.artifact(f"{run.entity}/{run.project}/{name}:v0").delete(delete_aliases=True)
            client.artifact_collection(TYPE, f"{run.entity}/{run.project}/{name}").delete()
            client.run(f"{run.entity}/{run.project}/{name}").delete()

    def close(self) -> None:
        """End the sync run and the client's own process."""
        with contextlib.suppress(Exception):
            if self._sync_run is not None:
                self._sync_run.finish()
        self._wandb.teardown()

    def run_state(self, run: Run) -> str:
        """See Store."""
        api = self._client()
        self._names |= _names(run)
        try:
            with self._translated(f"the look-up of run {run}"):
                return str(api.run(f"{run.entity}/{run.project}/{run.run_id}").state)
        except NotFoundError:
            raise NotFoundError(f"there is no run {run}", hint=self._near_misses(run)) from None

    def logged_step(self, run: Run) -> int | None:
        """The global step of the last row that the training logged, as WandbCallback calls it; None where there is none."""
        with self._translated(f"the look-up of run {run}"):
            value = self._client().run(f"{run.entity}/{run.project}/{run.run_id}").summary.get("train/global_step")
        return int(value) if isinstance(value, int | float) else None

    def versions(self, name: str) -> list[Version]:
        """See Store."""
        run = self._require_entity()
        self._names.add(name)
        try:
            with self._translated(f"the list of {name}"):
                found = [
                    _version(each) for each in self._client().artifacts(TYPE, f"{run.entity}/{run.project}/{name}", per_page=200)
                ]
        except NotFoundError:
            return []
        return sorted(found, key=lambda each: each.number, reverse=True)

    def outputs(self, run: Run) -> list[Version]:
        """See Store."""
        api = self._client()
        self._names |= _names(run)
        try:
            with self._translated(f"the outputs of run {run}"):
                logged = list(api.run(f"{run.entity}/{run.project}/{run.run_id}").logged_artifacts(per_page=200))
        except NotFoundError:
            raise NotFoundError(f"there is no run {run}") from None
        return [_version(each) for each in logged if each.type == TYPE and each.state == "COMMITTED"]

    def put_model(self, folder: Path, files: Sequence[File], upload: Upload) -> Version:
        """See Store. Logged by the sync run, like a checkpoint."""

        def add(artifact: Any) -> None:
            for file in files:
                artifact.add_file(str(folder / file.path), name=file.path, policy="immutable", skip_cache=True)

        return self._commit(f"the model in {folder}", folder, files, upload, add)

    def linked(self, version: Version) -> tuple[str, ...]:
        """See Store."""
        with self._translated(f"the links of {version}"):
            return _links(self._client().artifact(version.qualified))

    def link(self, version: Version, target: str, aliases: Sequence[str] = ()) -> str:
        """See Store."""
        *organization, registry, collection = target.split("/")
        if not registry.startswith(REGISTRY):
            registry = REGISTRY + registry
        with self._translated(f"the link of {version} to {target}"):
            linked = (
                self._client().artifact(version.qualified).link("/".join([*organization, registry, collection]), list(aliases))
            )
            return str(linked.qualified_name)

    def delete(self, version: Version) -> bool:
        """See Store."""
        with self._translated(f"the deletion of {version}"):
            return self._change(version, lambda artifact: artifact.delete(delete_aliases=True))

    def forget(self, run: Run) -> None:
        """Delete a run that was only a rehearsal, the sync run beside it, and every version that they logged."""
        for run_id in (f"ckptsync-{run.run_id}", run.run_id):
            with contextlib.suppress(NotFoundError), self._translated(f"the deletion of run {run_id}"):
                self._client().run(f"{run.entity}/{run.project}/{run_id}").delete(delete_artifacts=True)

    def expire(self, version: Version, at: float) -> bool:
        """See Store. The client counts a TTL from the creation."""

        def change(artifact: Any) -> None:
            artifact.ttl = timedelta(seconds=max(1, round(at - version.created_at)))
            artifact.save()

        with self._translated(f"the TTL of {version}"):
            return self._change(version, change)

    def _change(self, version: Version, change: Callable[[Any], None]) -> bool:
        """Do it to the version as it is now; not where it has got an alias since it was listed, or is linked."""
        try:
            with self._translated(f"the look-up of {version}"):
                artifact = self._client().artifact(version.qualified)
            if set(artifact.aliases) - set(version.aliases) or _links(artifact):
                return False
            with self._translated(f"the change of {version}"):
                change(artifact)
        except NotFoundError:
            pass
        return True

    def fetch(self, version: Version, into: Path, *, progress: Progress) -> None:
        """See Store."""
        self._files(version).fetch(into, progress=progress)

    def prove(self, version: Version, proved: set[str], *, progress: Progress) -> list[Problem]:
        """See Store."""
        return self._files(version).prove(proved, progress=progress)

    def _files(self, version: Version) -> VersionFiles:
        with self._translated(f"the look-up of the files of {version.name}:{version.version}"):
            return VersionFiles(self._client().artifact(version.qualified), version, self._translated)

    def _client(self) -> Any:
        if self._api is None:
            with self._translated("the log-in"):
                self._wandb.setup(settings=self._settings)
                overrides = {"base_url": self._connection.base_url, "project": self._run.project}
                if self._run.entity:
                    overrides["entity"] = self._run.entity
                self._api = self._wandb.Api(overrides=overrides, api_key=self._connection.api_key, timeout=20)
        return self._api

    def _require_entity(self) -> Run:
        return self._run if self._run.entity else self.check(self._run)

    def _open_sync_run(self, run: Run) -> Any:
        if self._sync_run is None:
            self._sync_run = self._wandb.init(
                entity=run.entity,
                project=run.project,
                id=f"ckptsync-{run.run_id}",
                name=f"ckptsync-{run.run_id}",
                group=run.run_id,
                job_type="checkpoint-sync",
                resume="allow",
                settings=self._settings,
            )
        return self._sync_run

    def _give_latest(self, qualified: str) -> None:
        """Move the alias back: the client gives it to whatever it logs, an older save included."""
        with contextlib.suppress(NotFoundError), self._translated(f"giving latest back to {qualified}"):
            holder = self._client().artifact(qualified)
            if "latest" not in holder.aliases:
                holder.aliases.append("latest")
                holder.save()

    def _commit(self, what: str, folder: Path, files: Sequence[File], upload: Upload, add: Callable[[Any], None]) -> Version:
        """Keep these files of a folder, which `add` hashes into an artifact, as a committed version whose manifest agrees.

        Raises SnapshotChangedError when they are not, or no longer, as they are listed; no version is left then.
        """
        run = self._require_entity()
        self._names |= {upload.name, str(folder)}
        with self._translated(f"the upload of {what}"):
            artifact = self._artifact(run, upload)
            add(artifact)
        expected = _digests(artifact)
        if _sizes(expected) != {file.path: file.size for file in files} or not unchanged(folder, files):
            raise SnapshotChangedError(f"{what} was rewritten while it was hashed")
        try:
            with self._translated(f"the upload of {what}"):
                logged = self._open_sync_run(run).log_artifact(artifact, aliases=["latest", *upload.aliases])
                logged.wait()
                committed = self._client().artifact(f"{run.entity}/{run.project}/{upload.name}:{logged.version}")
                agreed = self._agrees(committed, expected, folder)
        except StoreError:
            if not unchanged(folder, files):
                raise SnapshotChangedError(f"{what} was rewritten while it was uploaded") from None
            raise
        if not agreed:
            raise TransientStoreError(f"the manifest of {committed.name} does not agree with {what}")
        if not unchanged(folder, files):
            with self._translated(f"the removal of {committed.name}"):
                committed.delete(delete_aliases=True)
            raise SnapshotChangedError(f"{what} was rewritten while it was uploaded; its version was removed")
        return _version(committed)

    def _artifact(self, run: Run, upload: Upload) -> Any:
        """A new artifact, hashed with XXH128 where its collection takes that: it costs 25 times less than MD5.

        Where it doesn't, the client would hash all of it again with MD5, on one thread and without a word (wandb 0.31). So the
        newest version tells. Before the first one, and where that one can't be read, it is tried.
        """
        if upload.name not in self._algorithms:
            self._algorithms[upload.name] = FASTEST
            with contextlib.suppress(NotFoundError), self._translated(f"the look-up of {upload.name}"):
                newest = self._client().artifact(f"{run.entity}/{run.project}/{upload.name}:latest")
                with contextlib.suppress(Exception):
                    self._algorithms[upload.name] = _algorithm(newest)
        algorithm = self._algorithms[upload.name]
        return self._wandb.Artifact(upload.name, type=TYPE, metadata=dict(upload.metadata), digest_algorithm=algorithm)

    def _agrees(self, committed: Any, expected: Mapping[str, tuple[int, str]], folder: Path) -> bool:
        """Whether a committed manifest holds what was hashed; where it has other digests than were offered, by hashing anew."""
        actual = _digests(committed)
        if actual == expected:
            return True
        name = committed.name.partition(":")[0]
        if _algorithm(committed) == self._algorithms[name] or _sizes(actual) != _sizes(expected):
            return False
        self._algorithms[name] = _algorithm(committed)
        entries = [Entry.of(path, entry) for path, entry in committed.manifest.entries.items()]
        with ThreadPoolExecutor(READERS) as readers:
            return all(readers.map(lambda entry: entry.proved(folder), entries))

    def _near_misses(self, run: Run) -> str:
        """What to do about an unknown run: the ids that look like it, else where to look."""
        with contextlib.suppress(Exception):
            names = [each.id for each in self._client().runs(f"{run.entity}/{run.project}", per_page=100)]
            close = difflib.get_close_matches(run.run_id, [name for name in names if not name.startswith("ckptsync-")], n=3)
            if close:
                return f"Did you mean {', '.join(close)}?"
            if not names:
                return f"Project {run.entity}/{run.project} has no runs: check --project and --entity."
        return "Check the run id, --project and --entity."

    def _translated(self, what: str) -> contextlib.AbstractContextManager[None]:
        return translated(what, self._names)


def _names(run: Run) -> set[str]:
    """What the user called things: no reason for anything, when it stands in an error."""
    return {run.run_id, run.project, run.entity or ""}


def _algorithm(artifact: Any) -> Algorithm:
    """What the files of an artifact were hashed with, as the client's `digest_algorithm` takes it.

    The artifact itself says MD5 also where the store gave no answer about its features (wandb 0.31); its manifest knows.
    """
    fast = "XXH128" in str(artifact.digest_algorithm.value) or any(
        "XXH128" in str(entry.digest_algorithm().value) for entry in artifact.manifest.entries.values()
    )
    return "XXH128" if fast else "MD5"


def _digests(artifact: Any) -> dict[str, tuple[int, str]]:
    """What a manifest holds: path, then bytes and digest."""
    return {path: (int(entry.size or 0), str(entry.digest)) for path, entry in artifact.manifest.entries.items()}


def _sizes(digests: Mapping[str, tuple[int, str]]) -> dict[str, int]:
    return {path: size for path, (size, _) in digests.items()}


def _links(artifact: Any) -> tuple[str, ...]:
    return tuple(f"{each.project}/{each.name.partition(':')[0]}" for each in artifact.linked_artifacts)


def _version(artifact: Any) -> Version:
    created_at = datetime.fromisoformat(artifact.created_at).timestamp()
    return Version(
        qualified=artifact.source_qualified_name,
        name=artifact.source_name.split(":")[0],
        version=artifact.source_version,
        aliases=tuple(artifact.aliases),
        bytes=int(artifact.size),
        files=int(artifact.file_count),
        digest=str(artifact.digest),
        created_at=created_at,
        metadata=dict(artifact.metadata or {}),
        expires_at=created_at + artifact.ttl.total_seconds() if artifact.ttl else None,
    )
