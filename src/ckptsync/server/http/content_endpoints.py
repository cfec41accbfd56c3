"""PUT and GET of content and of run files: the bytes behind the links that GraphQL answers contain."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

from graphql import GraphQLError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from ckptsync.server.resolvers.artifacts import find_artifact
from ckptsync.server.resolvers.context import Call, row_id_of
from ckptsync.server.resolvers.multipart import content_size, parts_of
from ckptsync.server.resolvers.service import Service
from ckptsync.server.storage.content_store import KEY, hex_of
from ckptsync.server.transfers.bodies import Download, receive_body, refusal


@dataclass(frozen=True, slots=True)
class ContentEndpoints:
    """Uploads and downloads. Look-ups run in the threads of `queries`, disk work in threads of its own."""

    service: Service
    queries: Executor
    transfers: Executor = field(default_factory=lambda: ThreadPoolExecutor(16, "transfer"))

    async def put_content(self, request: Request) -> Response:
        key = request.path_params["key"]
        if not KEY.fullmatch(key):
            return refusal(404, "no such content")
        return await receive_body(request, self.service.content, self.transfers, key)

    async def put_run_file(self, request: Request) -> Response:
        file_id = request.path_params["id"]

        def record(key: str, size: int) -> None:
            with self.service.database.write() as connection:
                if self.service.content.size(key) is None:
                    # Nothing referred to it until now, and a deletion in between has freed it: the client sends it again.
                    raise FileNotFoundError(errno.ENOENT, "the content was deleted")
                connection.execute(
                    "UPDATE run_files SET content = ?, size = ?, updated_at = ? WHERE id = ?",
                    (key, size, time.time(), file_id),
                )

        return await receive_body(request, self.service.content, self.transfers, None, record)

    async def get_content(self, request: Request) -> ASGIApp:
        return await self._download(request, lambda _call: request.path_params["key"])

    async def get_artifact_file(self, request: Request) -> ASGIApp:
        # The rest of the path is the id of the version that first had the file, which may be empty, its digest, its name.
        digest = [*request.path_params["file"].split("/", 2), ""][1]

        def find(call: Call) -> str | None:
            artifact = find_artifact(call, row_id_of("Artifact", request.path_params["artifact"]))
            if artifact is None or artifact["state"] != "COMMITTED":
                return None
            rows = call.rows("SELECT digest, content FROM artifact_files WHERE artifact_id = ?", artifact["id"])
            return next((row["content"] for row in rows if row["content"] and hex_of(row["digest"]) == digest), None)

        return await self._download(request, find)

    async def _download(self, request: Request, find: Callable[[Call], str | None]) -> ASGIApp:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self.queries, self._pieces, find)
        if found is None:
            return refusal(404, "no such content")
        key, pieces = found
        return Download(self.service.content, self.transfers, pieces, request.headers.get("range"), key.partition("-")[2])

    def _pieces(self, find: Callable[[Call], str | None]) -> tuple[str, list[tuple[str, int]]] | None:
        """The content that `find` names and the (key, size) of what it consists of; None unless all of it is here."""
        with self.service.database.read() as connection:
            call = self.service.call(connection)
            try:
                key = find(call)
            except GraphQLError:
                key = None
            if key is None or not (KEY.fullmatch(key) or key.startswith("parts-")):
                return None
            parts = parts_of(call, key) if key.startswith("parts-") else [key]
            pieces = [(part, content_size(call, part)) for part in parts]
            known = [(part, size) for part, size in pieces if size is not None]
            return (key, known) if known and len(known) == len(pieces) else None
