"""Which run created a version, and which runs used it."""

from __future__ import annotations

from ckptsync.server.resolvers.artifacts import artifact_by_id
from ckptsync.server.resolvers.context import Call, Row, resolves
from ckptsync.server.resolvers.listing import Listing
from ckptsync.server.resolvers.paging import page
from ckptsync.server.resolvers.runs import run_at


@resolves("Mutation.useArtifact")
def use_artifact(_source: None, call: Call, given: Row) -> Row:
    artifact = artifact_by_id(call, given["artifactID"])
    run = run_at(call, given["entityName"], given["projectName"], given["runName"])
    call.execute(
        "INSERT OR REPLACE INTO inputs (run_id, artifact_id, used_as) VALUES (?, ?, ?)",
        run["id"],
        artifact["id"],
        given.get("usedAs"),
    )
    return {"artifact": artifact}


@resolves("Artifact.createdBy")
def created_by(source: Row, call: Call) -> Row | None:
    return call.row("SELECT * FROM runs WHERE id = ?", source["run_id"])


@resolves("Artifact.usedBy")
def used_by(source: Row, call: Call, first: int | None = None, after: str | None = None) -> Row:
    rows = call.rows(
        "SELECT r.* FROM inputs i JOIN runs r ON r.id = i.run_id WHERE i.artifact_id = ? ORDER BY r.id", source["id"]
    )
    return page(rows, first, after)


@resolves("Run.outputArtifacts")
def output_artifacts(source: Row, call: Call, first: int | None = None, after: str | None = None) -> Row:
    return _versions(call, "outputs", source).page(None, None, first, after)


@resolves("Run.inputArtifacts")
def input_artifacts(source: Row, call: Call, first: int | None = None, after: str | None = None) -> Row:
    return _versions(call, "inputs", source).page(None, None, first, after)


def _versions(call: Call, table: str, run: Row) -> Listing:
    ids = f"SELECT artifact_id FROM {table} WHERE run_id = ?"  # noqa: S608 - our own names
    return Listing(
        call,
        source=f"(SELECT * FROM artifacts WHERE state = 'COMMITTED' AND id IN ({ids}))",  # noqa: S608
        values=(run["id"],),
        key="id",
        order="+id",
        sortable={"id": "id"},
    )
