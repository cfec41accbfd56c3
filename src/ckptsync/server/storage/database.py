"""The SQLite file with everything but the bytes. Knows tables and transactions, but no rules of runs or artifacts.

One writer at a time, any number of readers (WAL). With `synchronous=FULL`, a committed transaction survives a killed process and
a power loss alike.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

Migration = tuple[str, ...]

MIGRATIONS: tuple[Migration, ...] = (
    (
        """CREATE TABLE projects (
            id INTEGER PRIMARY KEY, entity TEXT NOT NULL, name TEXT NOT NULL, description TEXT, access TEXT,
            created_at REAL NOT NULL, updated_at REAL NOT NULL, UNIQUE (entity, name))""",
        """CREATE TABLE runs (
            id INTEGER PRIMARY KEY, project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
            name TEXT NOT NULL, display_name TEXT, description TEXT, notes TEXT, group_name TEXT, job_type TEXT,
            config TEXT NOT NULL DEFAULT '{}', summary TEXT NOT NULL DEFAULT '{}', tags TEXT NOT NULL DEFAULT '[]',
            host TEXT, program TEXT, repo TEXT, commit_hash TEXT, sweep TEXT,
            state TEXT NOT NULL DEFAULT 'running', exit_code INTEGER, preempting INTEGER NOT NULL DEFAULT 0,
            stop_requested INTEGER NOT NULL DEFAULT 0, created_at REAL NOT NULL, heartbeat_at REAL NOT NULL,
            UNIQUE (project_id, name))""",
        """CREATE TABLE history (
            run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE, line INTEGER NOT NULL, step INTEGER,
            content TEXT NOT NULL, PRIMARY KEY (run_id, line)) WITHOUT ROWID""",
        "CREATE INDEX history_by_step ON history (run_id, step)",
        """CREATE TABLE events (
            run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE, line INTEGER NOT NULL,
            content TEXT NOT NULL, PRIMARY KEY (run_id, line)) WITHOUT ROWID""",
        """CREATE TABLE console (
            run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE, line INTEGER NOT NULL,
            content TEXT NOT NULL, PRIMARY KEY (run_id, line)) WITHOUT ROWID""",
        """CREATE TABLE run_files (
            id INTEGER PRIMARY KEY, run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
            name TEXT NOT NULL, content TEXT, size INTEGER NOT NULL DEFAULT 0, updated_at REAL NOT NULL,
            UNIQUE (run_id, name))""",
        "CREATE INDEX run_files_by_content ON run_files (content)",
        """CREATE TABLE collections (
            id INTEGER PRIMARY KEY, project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
            name TEXT NOT NULL, kind TEXT NOT NULL, type TEXT NOT NULL, description TEXT,
            next_version INTEGER NOT NULL DEFAULT 0, client_id TEXT, state TEXT NOT NULL DEFAULT 'READY',
            created_at REAL NOT NULL, updated_at REAL NOT NULL)""",
        "CREATE UNIQUE INDEX collections_by_name ON collections (project_id, name) WHERE state = 'READY'",
        """CREATE TABLE artifacts (
            id INTEGER PRIMARY KEY, collection_id INTEGER NOT NULL REFERENCES collections (id),
            digest TEXT NOT NULL, algorithm TEXT NOT NULL, state TEXT NOT NULL, description TEXT, metadata TEXT,
            ttl_seconds INTEGER, history_step INTEGER, run_id INTEGER REFERENCES runs (id) ON DELETE SET NULL,
            client_id TEXT, wanted_aliases TEXT NOT NULL DEFAULT '[]',
            manifest TEXT, size INTEGER NOT NULL DEFAULT 0, file_count INTEGER NOT NULL DEFAULT 0,
            created_at REAL NOT NULL, updated_at REAL NOT NULL)""",
        "CREATE INDEX artifacts_by_digest ON artifacts (collection_id, digest)",
        "CREATE INDEX artifacts_by_client ON artifacts (client_id)",
        "CREATE INDEX artifacts_by_manifest ON artifacts (manifest)",
        """CREATE TABLE artifact_files (
            artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE, name TEXT NOT NULL,
            digest TEXT NOT NULL, size INTEGER NOT NULL DEFAULT 0, content TEXT, reference TEXT,
            PRIMARY KEY (artifact_id, name)) WITHOUT ROWID""",
        "CREATE INDEX artifact_files_by_content ON artifact_files (content)",
        "CREATE INDEX artifact_files_by_digest ON artifact_files (digest)",
        """CREATE TABLE parts (
            content TEXT NOT NULL, number INTEGER NOT NULL, part TEXT NOT NULL,
            PRIMARY KEY (content, number)) WITHOUT ROWID""",
        "CREATE INDEX parts_by_part ON parts (part)",
        """CREATE TABLE memberships (
            id INTEGER PRIMARY KEY, collection_id INTEGER NOT NULL REFERENCES collections (id),
            artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
            version INTEGER NOT NULL, created_at REAL NOT NULL,
            UNIQUE (collection_id, artifact_id), UNIQUE (collection_id, version))""",
        "CREATE INDEX memberships_by_artifact ON memberships (artifact_id)",
        """CREATE TABLE aliases (
            id INTEGER PRIMARY KEY, collection_id INTEGER NOT NULL REFERENCES collections (id),
            alias TEXT NOT NULL, artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
            UNIQUE (collection_id, alias))""",
        "CREATE INDEX aliases_by_artifact ON aliases (artifact_id)",
        """CREATE TABLE tags (
            id INTEGER PRIMARY KEY, owner TEXT NOT NULL, owner_id INTEGER NOT NULL, name TEXT NOT NULL,
            UNIQUE (owner, owner_id, name))""",
        """CREATE TABLE outputs (
            run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
            artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
            PRIMARY KEY (run_id, artifact_id)) WITHOUT ROWID""",
        "CREATE INDEX outputs_by_artifact ON outputs (artifact_id)",
        """CREATE TABLE inputs (
            run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
            artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE, used_as TEXT,
            PRIMARY KEY (run_id, artifact_id)) WITHOUT ROWID""",
        "CREATE INDEX inputs_by_artifact ON inputs (artifact_id)",
    ),
    ("CREATE INDEX runs_by_creation ON runs (project_id, created_at, id)",),
    (
        "ALTER TABLE artifacts ADD COLUMN distributed_id TEXT",
        """CREATE TABLE partial_manifests (
            id INTEGER PRIMARY KEY, artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
            base_id INTEGER REFERENCES artifacts (id), content TEXT)""",
        "CREATE INDEX partial_manifests_by_artifact ON partial_manifests (artifact_id)",
        "CREATE INDEX partial_manifests_by_content ON partial_manifests (content)",
    ),
    (
        "ALTER TABLE projects ADD COLUMN any_type INTEGER",
        """CREATE TABLE project_types (
            project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE, name TEXT NOT NULL,
            created_at REAL NOT NULL, PRIMARY KEY (project_id, name)) WITHOUT ROWID""",
    ),
)


@dataclass(slots=True)
class Database:
    """One connection per thread to the file at `path`. Creates or migrates its tables."""

    path: Path
    _local: threading.local = field(default_factory=threading.local)
    _write_lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        with self.write() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
                for statement in statements:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.path, isolation_level=None, timeout=60, check_same_thread=False)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._local.connection = connection
        return connection

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: one consistent snapshot."""
        connection = self._connection()
        connection.execute("BEGIN")
        try:
            yield connection
        finally:
            connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def write(self, after: list[Callable[[], None]] | None = None) -> Iterator[sqlite3.Connection]:
        """A write transaction: all of the block or, if it raises, nothing of it.

        The actions that the block put into `after` run once it is durable and before the next writer starts.
        """
        connection = self._connection()
        with self._write_lock:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # A failed COMMIT, for example on a full disk, leaves the transaction open.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            for action in after or ():
                _run(action)


def _run(action: Callable[[], None]) -> None:
    """Run an action after its commit. An error is only logged: the clean-up at the next start does the rest."""
    try:
        action()
    except OSError:
        log.exception("cleaning up failed")
