"""W&B's catalogue: runs, versions, aliases, links, deletions. Moves none of a checkpoint's bytes."""

from __future__ import annotations

import contextlib
import difflib
import itertools
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from ckptsync.checkpoint import Run, Version
from ckptsync.errors import CkptsyncError, NotFoundError
from ckptsync.store import artifact
from ckptsync.store.wandb_client import Client

TYPE = "model"
"""The type of every collection that holds checkpoints: a collection has one type, and HF's WandbCallback uses this one."""

REGISTRY = "wandb-registry-"
"""The prefix of the projects that are registries."""

PROJECTS = 50
"""How many projects are asked for a run that is not where it was looked for."""


class WandbCatalogue:
    """Lists and edits the versions in one entity and project. A store adds how their bytes are kept."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def check(self, run: Run) -> Run:
        """See Store."""
        return self._client.check(run)

    def close(self) -> None:
        """End the sync run and the client's own process."""
        self._client.close()

    def run_state(self, run: Run) -> str:
        """See Store."""
        api = self._client.api()
        self._client.know(run)
        try:
            with self._client.translated(f"the look-up of run {run}"):
                return str(api.run(f"{run.entity}/{run.project}/{run.run_id}").state)
        except NotFoundError:
            raise NotFoundError(f"there is no run {run}", hint=self._near_misses(run)) from None

    def last_logged(self, run: Run) -> tuple[int | None, float | None]:
        """The last row that the training logged: its global step, as WandbCallback calls it, and its time on that machine.

        Each is None where the row has none. The time is in seconds since the epoch.
        """
        with self._client.translated(f"the look-up of run {run}"):
            summary = self._client.api().run(f"{run.entity}/{run.project}/{run.run_id}").summary
            step, at = summary.get("train/global_step"), summary.get("_timestamp")
        return int(step) if isinstance(step, int | float) else None, float(at) if isinstance(at, int | float) else None

    def versions(self, name: str) -> list[Version]:
        """See Store."""
        run = self._client.entity_run()
        self._client.names.add(name)
        try:
            with self._client.translated(f"the list of {name}"):
                found = [
                    version_of(each)
                    for each in self._client.api().artifacts(TYPE, f"{run.entity}/{run.project}/{name}", per_page=200)
                ]
        except NotFoundError:
            return []
        return sorted(found, key=lambda each: each.number, reverse=True)

    def latest(self, name: str) -> Version | None:
        """See Store."""
        run = self._client.entity_run()
        self._client.names.add(name)
        try:
            with self._client.translated(f"the look-up of {name}:latest"):
                return version_of(self._client.api().artifact(f"{run.entity}/{run.project}/{name}:latest"))
        except NotFoundError:
            return None

    def moved_to(self, run: Run) -> str | None:
        """The project in which the checkpoints of a run are, if its program named another one than it was started with.

        Asks the newest projects of the entity, one request for each. None as well where that fails: the run may be new.
        """
        name = artifact.artifact_name(run.run_id)
        with contextlib.suppress(CkptsyncError), self._client.translated("the list of projects"):
            client = self._client.api()
            for project in itertools.islice(client.projects(run.entity, per_page=PROJECTS), PROJECTS):
                path = f"{run.entity}/{project.name}/{name}"
                if project.name == run.project or not client.artifact_collection_exists(path, TYPE):
                    continue
                newest = version_of(client.artifact(f"{path}:latest"))
                if newest.ours.get("started_in") == run.project:
                    return str(project.name)
        return None

    def outputs(self, run: Run) -> list[Version]:
        """See Store."""
        api = self._client.api()
        self._client.know(run)
        try:
            with self._client.translated(f"the outputs of run {run}"):
                logged = list(api.run(f"{run.entity}/{run.project}/{run.run_id}").logged_artifacts(per_page=200))
        except NotFoundError:
            raise NotFoundError(f"there is no run {run}") from None
        return [version_of(each) for each in logged if each.type == TYPE and each.state == "COMMITTED"]

    def attach(self, version: Version, run: Run) -> bool:
        """See Store. One read and one CreateArtifact name the run: its history, config and state stay as they are.

        The read comes first, so that no run is created by accident, and happens once per process.
        """
        api = self._client.api()
        try:
            with self._client.translated(f"adding {version.name}:{version.version} to run {run}"):
                target = api.run(f"{run.entity}/{run.project}/{run.run_id}")
                target.log_artifact(api.artifact(version.qualified))
        except NotFoundError:
            return False
        return True

    def linked(self, version: Version) -> tuple[str, ...]:
        """See Store."""
        with self._client.translated(f"the links of {version}"):
            return links_of(self._client.api().artifact(version.qualified))

    def link(self, version: Version, target: str, aliases: Sequence[str] = ()) -> str:
        """See Store."""
        *organization, registry, collection = target.split("/")
        if not registry.startswith(REGISTRY):
            registry = REGISTRY + registry
        with self._client.translated(f"the link of {version} to {target}"):
            linked = (
                self._client.api()
                .artifact(version.qualified)
                .link("/".join([*organization, registry, collection]), list(aliases))
            )
            return str(linked.qualified_name)

    def delete(self, version: Version) -> bool:
        """See Store."""
        with self._client.translated(f"the deletion of {version}"):
            return self._change(version, lambda artifact: artifact.delete(delete_aliases=True))

    def expire(self, version: Version, at: float) -> bool:
        """See Store. The client counts a TTL from the creation."""

        def change(artifact: Any) -> None:
            artifact.ttl = timedelta(seconds=max(1, round(at - version.created_at)))
            artifact.save()

        with self._client.translated(f"the TTL of {version}"):
            return self._change(version, change)

    def forget(self, run: Run) -> None:
        """Delete a rehearsal's run, its sync run, and every version that they logged."""
        for run_id in (f"ckptsync-{run.run_id}", run.run_id):
            with contextlib.suppress(NotFoundError), self._client.translated(f"the deletion of run {run_id}"):
                self._client.api().run(f"{run.entity}/{run.project}/{run_id}").delete(delete_artifacts=True)

    def _give_latest(self, qualified: str) -> None:
        """Move the alias back: the client gives it to every version that it logs, an older save's included."""
        with contextlib.suppress(NotFoundError), self._client.translated(f"giving latest back to {qualified}"):
            holder = self._client.api().artifact(qualified)
            if "latest" not in holder.aliases:
                holder.aliases.append("latest")
                holder.save()

    def _change(self, version: Version, change: Callable[[Any], None]) -> bool:
        """Change the current version on the server; False when it is linked or got an alias since it was listed."""
        try:
            with self._client.translated(f"the look-up of {version}"):
                artifact = self._client.api().artifact(version.qualified)
            if set(artifact.aliases) - set(version.aliases) or links_of(artifact):
                return False
            with self._client.translated(f"the change of {version}"):
                change(artifact)
        except NotFoundError:
            pass
        return True

    def _near_misses(self, run: Run) -> str:
        """A hint for an unknown run: similar ids, else what to check."""
        with contextlib.suppress(Exception):
            names = [each.id for each in self._client.api().runs(f"{run.entity}/{run.project}", per_page=100)]
            close = difflib.get_close_matches(run.run_id, [name for name in names if not name.startswith("ckptsync-")], n=3)
            if close:
                return f"Did you mean {', '.join(close)}?"
            if not names:
                return f"Project {run.entity}/{run.project} has no runs: check --project and --entity."
        return "Check the run id, --project and --entity."


def version_of(artifact: Any) -> Version:
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


def links_of(artifact: Any) -> tuple[str, ...]:
    return tuple(f"{each.project}/{each.name.partition(':')[0]}" for each in artifact.linked_artifacts)
