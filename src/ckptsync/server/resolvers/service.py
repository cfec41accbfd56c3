"""What all operations share: the database, the content folder, and the secret that signs links."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass

from ckptsync.server.resolvers.context import Call
from ckptsync.server.storage.content_store import Content
from ckptsync.server.storage.database import Database
from ckptsync.server.transfers.signing import Links, Signer


@dataclass(frozen=True, slots=True)
class Service:
    """The data of one server and the settings that resolvers need. Times are in seconds."""

    database: Database
    content: Content
    signer: Signer
    crash_after: float
    link_lifetime: float

    def call(self, connection: sqlite3.Connection, base_url: str = "") -> Call:
        """One operation inside a transaction. Its links start with `base_url`, the address that the client used."""
        links = Links(self.signer, base_url, self.link_lifetime)
        return Call(connection, self.content, links, time.time(), self.crash_after)
