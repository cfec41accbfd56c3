"""Deletes versions past their TTL, unfinished uploads, and unreferenced bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ckptsync.server.resolvers.deletion import delete_version
from ckptsync.server.resolvers.service import Service
from ckptsync.server.storage.content_store import Content
from ckptsync.server.storage.database import Database

log = logging.getLogger(__name__)

PENDING_SECONDS = 7 * 24 * 60 * 60


def sweep_content(database: Database, content: Content) -> None:
    """Remove bytes that were left behind by a crash right after a deletion. Call it only while nothing is being uploaded."""
    with database.write() as connection:
        connection.execute("DELETE FROM parts WHERE content NOT IN (SELECT content FROM artifact_files WHERE content NOT NULL)")
        used = {
            row[0]
            for statement in (
                "SELECT content FROM artifact_files",
                "SELECT content FROM run_files",
                "SELECT manifest FROM artifacts",
                "SELECT content FROM partial_manifests",
                "SELECT part FROM parts",
            )
            for row in connection.execute(statement)
        }
    for key in list(content.keys()):
        if key not in used:
            content.remove(key)


def sweep_expired(service: Service) -> None:
    """Delete versions past their TTL, except those linked into a portfolio, and versions that have been pending for a week."""
    actions: list[Callable[[], None]] = []
    with service.database.write(actions) as connection:
        call = service.call(connection)
        call.after_commit = actions
        expired = call.rows(
            "SELECT id FROM artifacts a WHERE state = 'COMMITTED' AND ttl_seconds > 0 AND created_at + ttl_seconds < ?"
            " AND NOT EXISTS (SELECT 1 FROM memberships m WHERE m.artifact_id = a.id"
            "                 AND m.collection_id != a.collection_id)",
            call.now,
        )
        stale = call.rows("SELECT id FROM artifacts WHERE state = 'PENDING' AND updated_at < ?", call.now - PENDING_SECONDS)
        for artifact in (*expired, *stale):
            delete_version(call, artifact["id"])
    if expired or stale:
        log.info("cleaned up", extra={"expired": len(expired), "stale": len(stale)})
