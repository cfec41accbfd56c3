"""W&B as a store: the only module that imports wandb, and the only one that its exceptions leave as ours.

The process that uses it belongs to ckptsync: wandb's folders are pointed to a private place, its own retries are cut short so
that retrying rules, and the live training run is never initialised here (a second `wandb.init` on it would mark it as finished;
wandb 0.31, measured). Files are hashed where they lie: nothing is staged, nothing cached.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from ckptsync import ranges, snapshot
from ckptsync.checkpoint import File, Problem, Run, Snapshot, Version
from ckptsync.config import Connection
from ckptsync.errors import (
    CkptsyncError,
    IntegrityError,
    NotFoundError,
    RejectedError,
    SnapshotChangedError,
    StoreError,
    TransientStoreError,
)
from ckptsync.manifest import Entry, Urls, entries_of, remove_others, written
from ckptsync.store import Progress, Upload
from ckptsync.translation import translate

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

READERS = 8

NO_ROOM_HINT = "Free some space or give another folder; what is complete already is kept for the next try."

DOWNLOADS = 2
"""How often a file may arrive with other bytes than its digest says: once on the way is an accident, twice means the store."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


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

    def put(self, snapshot_: Snapshot, upload: Upload, *, progress: Progress) -> Version:
        """See Store. The version is logged by the run `ckptsync-<run_id>`, never by the training's own."""
        run = self._require_entity()
        self._names |= {upload.name, str(snapshot_.content)}
        with self._translated(f"the upload of {snapshot_.name}"):
            artifact = self._artifact(run, upload)
            artifact.add_dir(str(snapshot_.content), policy="immutable", skip_cache=True)
        expected = _contents(artifact)
        self._require_same_files(snapshot_, expected)
        progress(0, snapshot_.bytes)
        try:
            with self._translated(f"the upload of {snapshot_.name}"):
                sync_run = self._open_sync_run(run)
                logged = sync_run.log_artifact(artifact, aliases=["latest", *upload.aliases])
                logged.wait()
                committed = self._client().artifact(f"{run.entity}/{run.project}/{upload.name}:{logged.version}")
                agreed = self._agrees(committed, expected, snapshot_.content)
        except StoreError:
            if not snapshot.unchanged(snapshot_):
                raise SnapshotChangedError(f"{snapshot_.name} was rewritten while it was uploaded") from None
            raise
        if not agreed:
            raise TransientStoreError(f"the manifest of {committed.name} does not agree with {snapshot_.name}")
        if not snapshot.unchanged(snapshot_):
            with self._translated(f"the removal of {committed.name}"):
                committed.delete(delete_aliases=True)
            raise SnapshotChangedError(f"{snapshot_.name} was rewritten while it was uploaded; its version was removed")
        if upload.latest and upload.latest != logged.version:
            self._give_latest(f"{run.entity}/{run.project}/{upload.name}:{upload.latest}")
        progress(snapshot_.bytes, snapshot_.bytes)
        return _version(committed)

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
        run = self._require_entity()
        self._names |= {upload.name, str(folder)}
        what = f"the upload of {upload.name}"
        with self._translated(what):
            artifact = self._artifact(run, upload)
            for file in files:
                artifact.add_file(str(folder / file.path), name=file.path, policy="immutable", skip_cache=True)
            expected = _contents(artifact)
            if not _unchanged(folder, files) or {path: size for path, (size, _) in expected.items()} != {
                file.path: file.size for file in files
            }:
                raise SnapshotChangedError(f"{folder} was rewritten while it was hashed")
            logged = self._open_sync_run(run).log_artifact(artifact, aliases=["latest", *upload.aliases])
            logged.wait()
            committed = self._client().artifact(f"{run.entity}/{run.project}/{upload.name}:{logged.version}")
        if not self._agrees(committed, expected, folder):
            raise TransientStoreError(f"the manifest of {committed.name} does not agree with {folder}")
        if not _unchanged(folder, files):
            with self._translated(f"the removal of {committed.name}"):
                committed.delete(delete_aliases=True)
            raise SnapshotChangedError(f"{folder} was rewritten while it was uploaded; its version was removed")
        return _version(committed)

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
        with self._translated(f"the download of {version.name}:{version.version}"):
            artifact = self._client().artifact(version.qualified)
            entries = entries_of(artifact, version)
            urls = Urls(artifact)
        for entry in entries.values():
            entry.require_no_links(into)
        remove_others(into, {*entries, *(path + ranges.SIDECAR for path in entries)})
        done, total, lock = 0, sum(entry.size for entry in entries.values()), threading.Lock()

        def arrived(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                progress(min(done, total), total)

        import requests

        with requests.Session() as session, ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(READERS) as files:
            session.mount("http", requests.adapters.HTTPAdapter(pool_maxsize=READERS * 2))

            def bring(entry: Entry) -> None:
                note = ranges.Finished.of(into / entry.path, entry.size, entry.digest)
                # One that was left in the middle has its size already, and is not read for nothing.
                if not note.path.exists() and entry.proved(into):
                    arrived(entry.size)
                    return
                for _ in range(DOWNLOADS):
                    digest = entry.hasher()
                    with self._translated(f"the download of {entry.path}"), _local(f"the download of {entry.path}"):
                        ranges.download(
                            session,
                            lambda: urls.of(entry.path),
                            into / entry.path,
                            entry.size,
                            pool=readers,
                            arrived=arrived,
                            seen=digest.update,
                            finished=note,
                        )
                    note.forget()
                    if written(digest) == entry.digest:
                        return
                raise IntegrityError(f"{version.name}:{version.version}: {entry.path} does not have the digest of its manifest")

            for outcome in [files.submit(bring, entry) for entry in entries.values()]:
                outcome.result()

    def prove(self, version: Version, proved: set[str], *, progress: Progress) -> list[Problem]:
        """See Store."""
        what = f"the reading of {version}"
        with self._translated(what):
            artifact = self._client().artifact(version.qualified)
            entries = entries_of(artifact, version)
            urls = Urls(artifact)
        done, total, lock = 0, sum(entry.size for entry in entries.values()), threading.Lock()

        def arrived(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                progress(min(done, total), total)

        import requests

        def read(session: requests.Session, entry: Entry) -> Problem | None:
            if entry.path in proved:
                arrived(entry.size)
                return None
            try:
                with self._translated(f"the reading of {entry.path}"):
                    found = entry.digest_of(ranges.read(session, urls.of(entry.path), entry.size, arrived=arrived))
            except (NotFoundError, IntegrityError) as error:
                return Problem(entry.path, str(error))
            if found != entry.digest:
                return Problem(entry.path, "does not have the digest of its manifest")
            proved.add(entry.path)
            return None

        with requests.Session() as session, ThreadPoolExecutor(READERS) as files:
            session.mount("http", requests.adapters.HTTPAdapter(pool_maxsize=READERS))
            outcomes = [files.submit(read, session, entry) for entry in entries.values()]
            return [problem for outcome in outcomes if (problem := outcome.result())]

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
        actual = _contents(committed)
        if actual == expected:
            return True
        name = committed.name.partition(":")[0]
        if _algorithm(committed) == self._algorithms[name] or {path: size for path, (size, _) in actual.items()} != {
            path: size for path, (size, _) in expected.items()
        }:
            return False
        self._algorithms[name] = _algorithm(committed)
        entries = [Entry.of(path, entry) for path, entry in committed.manifest.entries.items()]
        with ThreadPoolExecutor(READERS) as readers:
            return all(readers.map(lambda entry: entry.proved(folder), entries))

    def _require_same_files(self, snapshot_: Snapshot, expected: Mapping[str, tuple[int, str]]) -> None:
        """After hashing: what was hashed is what was accepted, file for file."""
        wanted = {file.path: file.size for file in snapshot_.files}
        if {path: size for path, (size, _) in expected.items()} != wanted or not snapshot.unchanged(snapshot_):
            raise SnapshotChangedError(f"{snapshot_.name} was rewritten while it was hashed")

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

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except CkptsyncError:
            raise
        except Exception as error:
            raise translate(error, what, self._names) from error


def _names(run: Run) -> set[str]:
    """What the user called things: no reason for anything, when it stands in an error."""
    return {run.run_id, run.project, run.entity or ""}


@contextlib.contextmanager
def _local(what: str) -> Iterator[None]:
    """Tell a full or read-only disk of this machine from a failing store: trying again would not help."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise CkptsyncError(f"{what} failed: {error.strerror}", hint=NO_ROOM_HINT) from error


def _algorithm(artifact: Any) -> Algorithm:
    """What the files of an artifact were hashed with, as the client's `digest_algorithm` takes it.

    The artifact itself says MD5 also where the store gave no answer about its features (wandb 0.31); its manifest knows.
    """
    fast = "XXH128" in str(artifact.digest_algorithm.value) or any(
        "XXH128" in str(entry.digest_algorithm().value) for entry in artifact.manifest.entries.values()
    )
    return "XXH128" if fast else "MD5"


def _contents(artifact: Any) -> dict[str, tuple[int, str]]:
    """What a manifest holds: path, then bytes and digest."""
    return {path: (int(entry.size or 0), str(entry.digest)) for path, entry in artifact.manifest.entries.items()}


def _unchanged(folder: Path, files: Sequence[File]) -> bool:
    """Whether every file still has the size and mtime that it is listed with."""
    try:
        found = [(folder / file.path).stat(follow_symlinks=False) for file in files]
    except OSError:
        return False
    return all((at.st_size, at.st_mtime_ns) == (file.size, file.mtime_ns) for at, file in zip(found, files, strict=True))


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
