"""PUT and GET of bytes, streamed in blocks, so memory stays constant. Hashing and disk I/O run in threads."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ckptsync.server.storage.content_store import BadDigestError, Content, Upload
from ckptsync.server.transfers.direct_body import BODY, DirectBody
from ckptsync.server.transfers.zero_copy import EXTENSION

BLOCK = 512 * 1024
Piece = bytes | memoryview
RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


def refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse({"errors": [{"message": message}]}, status)


async def receive_body(
    request: Request, content: Content, pool: Executor, key: str | None, record: Callable[[str, int], None] | None = None
) -> Response:
    """Receive a PUT: responds 200 with the digest as ETag once the bytes are verified and durable.

    `record` is called with the key and the size before the response. A body that doesn't match its Content-MD5 or its key gets
    400 and is discarded.
    """
    direct = _direct(request)
    answer = await _received(request, direct, content, pool, key, record)
    if direct:
        answer.headers["Connection"] = "close"
    return answer


async def _received(
    request: Request,
    direct: DirectBody | None,
    content: Content,
    pool: Executor,
    key: str | None,
    record: Callable[[str, int], None] | None,
) -> Response:
    try:
        md5 = _content_md5(request.headers.get("content-md5"))
    except ValueError:
        return refusal(400, "InvalidDigest: the Content-MD5 is invalid")
    loop = asyncio.get_running_loop()
    upload = await loop.run_in_executor(pool, content.upload, key, md5)
    try:
        await _fill(upload, _pieces(direct) if direct else _blocks(request), pool)
        request.scope["ckptsync.received"] = upload.size
        kept = await loop.run_in_executor(pool, upload.keep)
        if record is not None:
            await loop.run_in_executor(pool, record, kept, upload.size)
    except BadDigestError as error:
        return refusal(400, f"BadDigest: {error}")
    except ClientDisconnect:
        return refusal(400, "IncompleteBody")
    except OSError as error:
        return refusal(507, f"cannot store the body: {error.strerror}")
    finally:
        await loop.run_in_executor(pool, upload.drop)
    return Response(status_code=200, headers={"ETag": f'"{kept.partition("-")[2]}"'})


def _content_md5(header: str | None) -> bytes | None:
    if header is None:
        return None
    try:
        digest = base64.b64decode(header, validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None
    if len(digest) != 16:
        raise ValueError("not an MD5")
    return digest


async def _fill(upload: Upload, pieces: AsyncIterator[Sequence[Piece]], pool: Executor) -> None:
    """Hash and write each piece of the body in parallel while the next piece is received."""
    loop = asyncio.get_running_loop()
    busy: list[asyncio.Future[None]] = []
    try:
        async for piece in pieces:
            await asyncio.gather(*busy)
            busy = [loop.run_in_executor(pool, step, piece) for step in (upload.digest, upload.write)]
    finally:
        # Also after a disconnect: the file is closed next, and a thread may still be writing to it.
        await asyncio.gather(*busy)


def _direct(request: Request) -> DirectBody | None:
    """A large body read directly from the socket, if that is possible."""
    take = request.scope.get("extensions", {}).get(BODY)
    return take() if take else None


async def _pieces(body: DirectBody) -> AsyncIterator[Sequence[Piece]]:
    async for piece in body:
        yield (piece,)


async def _blocks(request: Request) -> AsyncIterator[Sequence[Piece]]:
    """The chunks of a body, at least BLOCK bytes at a time."""
    block: list[Piece] = []
    size = 0
    async for chunk in request.stream():
        block.append(chunk)
        size += len(chunk)
        if size >= BLOCK:
            yield block
            block, size = [], 0
    yield block


def requested_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The (start, stop) of a single byte range, None for the whole content. Raises ValueError if the range is empty."""
    match = RANGE.fullmatch(header or "")
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, stop = max(size - int(match[2]), 0), size
    else:
        start, stop = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    if start >= stop:
        raise ValueError("unsatisfiable range")
    return start, stop


@dataclass(frozen=True, slots=True)
class Download:
    """An ASGI response that sends a content, or one range of it, piece by piece."""

    content: Content
    pool: Executor
    pieces: list[tuple[str, int]]
    range_header: str | None
    etag: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = sum(length for _, length in self.pieces)
        try:
            wanted = requested_range(self.range_header, size)
        except ValueError:
            response = Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
            await response(scope, receive, send)
            return
        start, stop = wanted or (0, size)
        headers = {
            "content-length": str(stop - start),
            "content-type": "application/octet-stream",
            "accept-ranges": "bytes",
            "etag": f'"{self.etag}"',
            "x-content-type-options": "nosniff",
        }
        if wanted is not None:
            headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200 if wanted is None else 206, "headers": raw})
        for key, first, last in self._spans(start, stop):
            await self._send_piece(scope, send, key, first, last)
        await send({"type": "http.response.body", "body": b""})

    def _spans(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """(piece, first, last) for the bytes from start to stop."""
        offset = 0
        for key, length in self.pieces:
            first, last = max(start - offset, 0), min(stop - offset, length)
            if first < last:
                yield key, first, last
            offset += length

    async def _send_piece(self, scope: Scope, send: Send, key: str, first: int, last: int) -> None:
        loop = asyncio.get_running_loop()
        file = await loop.run_in_executor(self.pool, partial(open, self.content.path(key), "rb", buffering=0))
        try:
            if EXTENSION in scope.get("extensions", {}):
                await send({"type": EXTENSION, "file": file, "offset": first, "count": last - first, "more_body": True})
                return
            while first < last:
                block = await loop.run_in_executor(self.pool, os.pread, file.fileno(), min(BLOCK, last - first), first)
                if not block:
                    raise OSError("a content file became shorter")
                first += len(block)
                await send({"type": "http.response.body", "body": block, "more_body": True})
        finally:
            file.close()
