"""Which path does what, and what a request has to present: the API key, or the signature of its link."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from ckptsync.server.http.api_endpoints import ApiEndpoints
from ckptsync.server.http.auth import is_authorized
from ckptsync.server.http.content_endpoints import ContentEndpoints
from ckptsync.server.resolvers.service import Service
from ckptsync.server.transfers.bodies import refusal
from ckptsync.server.transfers.signing import Signer

Endpoint = Callable[[Request], Awaitable[Any]]


def routes(service: Service, key: str) -> list[Route]:
    """The routes of a server whose API key is `key`."""
    queries = ThreadPoolExecutor(8, "query")
    api, content = ApiEndpoints(service, queries), ContentEndpoints(service, queries)
    download = _with_signature(content.get_content, service.signer)
    return [
        Route("/healthz", api.health, methods=["GET"]),
        Route("/graphql", _with_key(api.graphql, key), methods=["POST"]),
        Route("/files/{entity}/{project}/{run}/file_stream", _with_key(api.file_stream, key), methods=["POST"]),
        Route("/storage/content/{key}", _with_signature(content.put_content, service.signer), methods=["PUT"]),
        Route("/storage/content/{key}", download, methods=["GET"]),
        Route("/storage/run-file/{id:int}", _with_signature(content.put_run_file, service.signer), methods=["PUT"]),
        Route(
            "/artifactsV2/{region}/{entity}/{project}/{collection}/{artifact}/{file:path}",
            _with_key(content.get_artifact_file, key),
            methods=["GET"],
        ),
    ]


def _with_key(endpoint: Endpoint, key: str) -> Endpoint:
    async def checked(request: Request) -> Any:
        if not is_authorized(request.headers, key):
            return refusal(401, "the API key is not valid for this server")
        return await endpoint(request)

    return checked


def _with_signature(endpoint: Endpoint, signer: Signer) -> Endpoint:
    async def checked(request: Request) -> Any:
        query = request.query_params
        expires, signature = query.get("expires", ""), query.get("signature", "")
        if not signer.allows(request.method, request.url.path, expires, signature, time.time()):
            return refusal(403, "AccessDenied: the link is not valid or has expired")
        return await endpoint(request)

    return checked
