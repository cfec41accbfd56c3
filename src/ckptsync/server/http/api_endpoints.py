"""The endpoints that answer with JSON: GraphQL, the file stream of running clients, and the health check."""

from __future__ import annotations

import asyncio
import json
import os
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ckptsync import __version__
from ckptsync.server.graphql import execution
from ckptsync.server.http import file_stream
from ckptsync.server.resolvers.projects import find_project
from ckptsync.server.resolvers.runs import find_run
from ckptsync.server.resolvers.service import Service
from ckptsync.server.transfers.bodies import refusal

MAX_QUERY_BODY_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ApiEndpoints:
    """Requests for data. They run in the threads of `queries`."""

    service: Service
    queries: Executor

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
        service = self.service
        try:
            found = execution.answer(query, service.database, lambda connection: service.call(connection, base_url))
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
            with self.service.database.write() as connection:
                call = self.service.call(connection)
                run = find_run(call, find_project(call, where["entity"], where["project"]), where["run"])
                if run is None:
                    return refusal(404, "no such run")
                file_stream.apply(connection, run, update, call.now)
        except file_stream.InvalidStreamError as error:
            return refusal(400, str(error))
        return JSONResponse({"exitcode": None, "stopped": bool(run["stop_requested"])})


async def _limited_body(request: Request, limit: int) -> bytes | None:
    """The body, or None if it is larger than the limit. Never holds more than that."""
    parts: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            return None
        parts.append(chunk)
    return b"".join(parts)
