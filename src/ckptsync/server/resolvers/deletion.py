"""Deleting runs and versions, and freeing the bytes that nothing refers to any more."""

from __future__ import annotations

from functools import partial

from graphql import GraphQLError

from ckptsync.server.resolvers.context import Call, Row, resolves, row_id_of


@resolves("Mutation.deleteRun")
def delete_run(_source: None, call: Call, given: Row) -> Row:
    """Delete a run with its history and files, and with deleteArtifacts the versions that it created. Idempotent."""
    run = call.row("SELECT id FROM runs WHERE id = ?", row_id_of("Run", given["id"]))
    if run is None:
        return {"success": True}
    if given.get("deleteArtifacts"):
        for artifact in call.rows("SELECT id FROM artifacts WHERE run_id = ? AND state = 'COMMITTED'", run["id"]):
            delete_version(call, artifact["id"])
    _remove_run(call, run["id"])
    return {"success": True}


def _remove_run(call: Call, run_id: int) -> None:
    contents = {row["content"] for row in call.rows("SELECT content FROM run_files WHERE run_id = ?", run_id)}
    call.execute("DELETE FROM runs WHERE id = ?", run_id)
    release(call, contents)


@resolves("Mutation.deleteModel")
def delete_project(_source: None, call: Call, given: Row) -> Row:
    """Delete a project with its runs, collections and versions. Versions of other projects that it links to stay."""
    project_id = row_id_of("Project", given["id"])
    if call.row("SELECT 1 FROM projects WHERE id = ?", project_id) is None:
        raise GraphQLError("no such project")
    collections = [row["id"] for row in call.rows("SELECT id FROM collections WHERE project_id = ?", project_id)]
    for collection_id in collections:
        empty_collection(call, collection_id)
        versions = "SELECT id FROM artifacts WHERE collection_id = ?"
        # Without its base, an incremental version that is being uploaded cannot be committed.
        call.execute(f"DELETE FROM partial_manifests WHERE base_id IN ({versions})", collection_id)  # noqa: S608
        call.execute("DELETE FROM artifacts WHERE collection_id = ?", collection_id)
    for run in call.rows("SELECT id FROM runs WHERE project_id = ?", project_id):
        _remove_run(call, run["id"])
    call.execute("DELETE FROM projects WHERE id = ?", project_id)
    return {"success": True}


def empty_collection(call: Call, collection_id: int) -> None:
    """Remove all versions from a collection, and delete those that belong to it."""
    for artifact in call.rows("SELECT id FROM artifacts WHERE collection_id = ?", collection_id):
        delete_version(call, artifact["id"])
    for table in ("memberships", "aliases"):
        call.execute(f"DELETE FROM {table} WHERE collection_id = ?", collection_id)  # noqa: S608 - our own names
    call.execute("DELETE FROM tags WHERE owner = 'collection' AND owner_id = ?", collection_id)


def delete_version(call: Call, artifact_id: int) -> None:
    """Delete a version: remove it from every collection with its aliases and free its bytes. Its number is never reused."""
    contents = {row["content"] for row in call.rows("SELECT content FROM artifact_files WHERE artifact_id = ?", artifact_id)}
    contents |= {row["manifest"] for row in call.rows("SELECT manifest FROM artifacts WHERE id = ?", artifact_id)}
    contents |= {row["content"] for row in call.rows("SELECT content FROM partial_manifests WHERE artifact_id = ?", artifact_id)}
    for table in ("artifact_files", "partial_manifests", "memberships", "aliases", "outputs", "inputs"):
        call.execute(f"DELETE FROM {table} WHERE artifact_id = ?", artifact_id)  # noqa: S608 - our own names
    call.execute("DELETE FROM tags WHERE owner = 'artifact' AND owner_id = ?", artifact_id)
    call.update("artifacts", artifact_id, state="DELETED", manifest=None, updated_at=call.now)
    release(call, contents)


def release(call: Call, contents: set[str | None]) -> None:
    """Free the bytes of unreferenced contents once this transaction is durable."""
    for content in filter(None, contents):
        if _is_used(call, content):
            continue
        if content.startswith("parts-"):
            parts = {row["part"] for row in call.rows("SELECT part FROM parts WHERE content = ?", content)}
            call.execute("DELETE FROM parts WHERE content = ?", content)
            release(call, parts)
        else:
            call.after_commit.append(partial(call.content.remove, content))


def _is_used(call: Call, content: str) -> bool:
    return any(
        call.row(f"SELECT 1 FROM {table} WHERE {column} = ? LIMIT 1", content)  # noqa: S608 - our own names
        for table, column in (
            ("artifact_files", "content"),
            ("run_files", "content"),
            ("artifacts", "manifest"),
            ("partial_manifests", "content"),
            ("parts", "part"),
        )
    )


@resolves("Mutation.deleteArtifact")
def delete_artifact(_source: None, call: Call, given: Row) -> Row:
    """Delete a version. One that has aliases is deleted only with deleteAliases."""
    artifact = call.row("SELECT * FROM artifacts WHERE id = ?", row_id_of("Artifact", given["artifactID"]))
    if artifact is None or artifact["state"] == "DELETED":
        raise GraphQLError("no such artifact")
    aliased = call.row("SELECT 1 FROM aliases WHERE artifact_id = ?", artifact["id"])
    if aliased and not given.get("deleteAliases"):
        raise GraphQLError("cannot delete an artifact version that has aliases; set deleteAliases to delete them too")
    delete_version(call, artifact["id"])
    return {"artifact": {**artifact, "state": "DELETED"}}
