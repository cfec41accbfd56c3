"""Which path does what: GraphQL, the file stream, and the bytes behind signed links."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from graphql import GraphQLError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ckptsync import __version__
from ckptsync.server.graphql import execution
from ckptsync.server.http import file_stream
from ckptsync.server.http.auth import is_authorized
from ckptsync.server.resolvers.accounts import find_project
from ckptsync.server.resolvers.artifact_upload import content_size, parts_of
from ckptsync.server.resolvers.artifacts import find_artifact
from ckptsync.server.resolvers.context import Call, row_id_of
from ckptsync.server.resolvers.runs import find_run
from ckptsync.server.storage.content_store import KEY, Content, hex_of
from ckptsync.server.storage.database import Database
from ckptsync.server.transfers.bodies import Download, receive_body, refusal
from ckptsync.server.transfers.signing import Links, Signer

MAX_QUERY_BODY_BYTES = 32 * 1024 * 1024
Endpoint = Callable[[Request], Awaitable[Any]]


@dataclass(slots=True)
class Service:
    """The endpoints over one database and one content folder."""

    database: Database
    content: Content
    signer: Signer
    key: str
    crash_after: float
    link_lifetime: float
    queries: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8, "query"))
    transfers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(16, "transfer"))

    def routes(self) -> list[Route]:
        keyed = self._with_key
        signed = self._with_signature
        return [
            Route("/healthz", self.health, methods=["GET"]),
            Route("/graphql", keyed(self.graphql), methods=["POST"]),
            Route("/files/{entity}/{project}/{run}/file_stream", keyed(self.file_stream), methods=["POST"]),
            Route("/storage/content/{key}", signed(self.put_content), methods=["PUT"]),
            Route("/storage/content/{key}", signed(self.get_content), methods=["GET"]),
            Route("/storage/run-file/{id:int}", signed(self.put_run_file), methods=["PUT"]),
            Route(
                "/artifactsV2/{region}/{entity}/{project}/{collection}/{artifact}/{file:path}",
                keyed(self.get_artifact_file),
                methods=["GET"],
            ),
        ]

    def _with_key(self, endpoint: Endpoint) -> Endpoint:
        async def checked(request: Request) -> Any:
            if not is_authorized(request.headers, self.key):
                return refusal(401, "the API key is not valid for this server")
            return await endpoint(request)

        return checked

    def _with_signature(self, endpoint: Endpoint) -> Endpoint:
        async def checked(request: Request) -> Any:
            query = request.query_params
            expires, signature = query.get("expires", ""), query.get("signature", "")
            if not self.signer.allows(request.method, request.url.path, expires, signature, time.time()):
                return refusal(403, "AccessDenied: the link is not valid or has expired")
            return await endpoint(request)

        return checked

    def call(self, connection: sqlite3.Connection, base_url: str) -> Call:
        return Call(connection, self.content, Links(self.signer, base_url, self.link_lifetime), time.time(), self.crash_after)

    async def health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok", "pid": os.getpid(), "version": __version__})

    async def graphql(self, request: Request) -> Response:
        body = await _limited_body(request, MAX_QUERY_BODY_BYTES)
        if body is None:
            return refusal(413, "the request is too large")
        loop = asyncio.get_running_loop()
        base_url = f"http://{request.headers['host']}"
        status, answer = await loop.run_in_executor(self.queries, self._answer, request.scope, body, base_url)
        return Response(answer, status, media_type="application/json")

    def _answer(self, scope: Any, body: bytes, base_url: str) -> tuple[int, bytes]:
        try:
            query = json.loads(body)
        except (ValueError, RecursionError):
            return 400, execution.dumps({"errors": [{"message": "the request is not JSON"}]})
        scope["ckptsync.operation"] = execution.operation_name(query)
        scope["ckptsync.variables"] = query.get("variables") if isinstance(query, dict) else None
        try:
            found = execution.answer(query, self.database, lambda connection: self.call(connection, base_url))
        except execution.RejectedQueryError as error:
            return 400, execution.dumps({"errors": [{"message": str(error)}]})
        return 200, execution.dumps(found)

    async def file_stream(self, request: Request) -> Response:
        body = await _limited_body(request, file_stream.MAX_BODY_BYTES)
        if body is None:
            return refusal(413, "the request is too large")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.queries, self._stream, request, body)

    def _stream(self, request: Request, body: bytes) -> Response:
        where = request.path_params
        try:
            update = file_stream.parse_body(body, request.headers.get("content-encoding"))
            with self.database.write() as connection:
                call = self.call(connection, "")
                run = find_run(call, find_project(call, where["entity"], where["project"]), where["run"])
                if run is None:
                    return refusal(404, "no such run")
                file_stream.apply(connection, run, update, call.now)
        except file_stream.InvalidStreamError as error:
            return refusal(400, str(error))
        return JSONResponse({"exitcode": None, "stopped": bool(run["stop_requested"])})

    async def put_content(self, request: Request) -> Response:
        key = request.path_params["key"]
        if not KEY.fullmatch(key):
            return refusal(404, "no such content")
        return await receive_body(request, self.content, self.transfers, key)

    async def put_run_file(self, request: Request) -> Response:
        file_id = request.path_params["id"]

        def record(key: str, size: int) -> None:
            with self.database.write() as connection:
                if self.content.size(key) is None:
                    # Nothing referred to it until now, and a deletion in between has freed it: the client sends it again.
                    raise FileNotFoundError(errno.ENOENT, "the content is gone")
                connection.execute(
                    "UPDATE run_files SET content = ?, size = ?, updated_at = ? WHERE id = ?",
                    (key, size, time.time(), file_id),
                )

        return await receive_body(request, self.content, self.transfers, None, record)

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
        return Download(self.content, self.transfers, pieces, request.headers.get("range"), key.partition("-")[2])

    def _pieces(self, find: Callable[[Call], str | None]) -> tuple[str, list[tuple[str, int]]] | None:
        """The content that `find` names and the (key, size) of what it consists of; None unless all of it is here."""
        with self.database.read() as connection:
            call = self.call(connection, "")
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


async def _limited_body(request: Request, limit: int) -> bytes | None:
    """The body, or None when it is larger than the limit; no more than that is ever held."""
    parts: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            return None
        parts.append(chunk)
    return b"".join(parts)
