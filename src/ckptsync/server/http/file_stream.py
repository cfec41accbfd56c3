"""Stores what a running client streams: history, events, console lines and the summary, each at a given offset, and its end."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

MAX_BODY_BYTES = 64 * 1024 * 1024

HISTORY, EVENTS, SUMMARY, CONSOLE = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json", "output.log"


class InvalidStreamError(Exception):
    """The body is not a valid file stream request."""


def parse_body(body: bytes, encoding: str | None) -> dict[str, Any]:
    """Parse a body that may be gzipped. Never unpacks more than the limit."""
    try:
        if encoding == "gzip":
            with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
                body = file.read(MAX_BODY_BYTES + 1)
            if len(body) > MAX_BODY_BYTES:
                raise InvalidStreamError("the body is too large")
        request = json.loads(body)
    except (OSError, EOFError, ValueError, RecursionError):
        raise InvalidStreamError("the body is not JSON") from None
    if not isinstance(request, dict):
        raise InvalidStreamError("the body has the wrong type")
    return request


def apply(connection: sqlite3.Connection, run: Mapping[str, Any], request: Mapping[str, Any], now: float) -> None:
    """Store the chunks and record the heartbeat. Idempotent."""
    files = request.get("files") or {}
    if not isinstance(files, dict):
        raise InvalidStreamError("files has the wrong type")
    for name, chunk in files.items():
        offset, lines = _chunk(chunk)
        _store(connection, run["id"], name, offset, lines)
    _note_state(connection, run, request, now)


def _chunk(chunk: Any) -> tuple[int, Sequence[str]]:
    if not isinstance(chunk, dict):
        raise InvalidStreamError("a chunk has the wrong type")
    offset, lines = chunk.get("offset", 0), chunk.get("content", [])
    if not isinstance(offset, int) or not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise InvalidStreamError("a chunk has the wrong type")
    return offset, lines


def _store(connection: sqlite3.Connection, run_id: int, name: str, offset: int, lines: Sequence[str]) -> None:
    if name == SUMMARY:
        if lines:
            _object(lines[-1])
            connection.execute("UPDATE runs SET summary = ? WHERE id = ?", (lines[-1], run_id))
    elif name == HISTORY:
        rows = [(run_id, offset + index, _object(line).get("_step"), line) for index, line in enumerate(lines)]
        connection.executemany("INSERT OR REPLACE INTO history (run_id, line, step, content) VALUES (?, ?, ?, ?)", rows)
    elif name in (EVENTS, CONSOLE):
        table = "events" if name == EVENTS else "console"
        connection.executemany(
            f"INSERT OR REPLACE INTO {table} (run_id, line, content) VALUES (?, ?, ?)",  # noqa: S608 - our own names
            [(run_id, offset + index, line) for index, line in enumerate(lines)],
        )


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        raise InvalidStreamError("a line is not JSON") from None
    if not isinstance(value, dict):
        raise InvalidStreamError("a line has the wrong type")
    return value


def _note_state(connection: sqlite3.Connection, run: Mapping[str, Any], request: Mapping[str, Any], now: float) -> None:
    preempting = bool(run["preempting"] or request.get("preempting"))
    if not request.get("complete"):
        connection.execute(
            "UPDATE runs SET state = 'running', exit_code = NULL, preempting = ?, heartbeat_at = ? WHERE id = ?",
            (preempting, now, run["id"]),
        )
        return
    exit_code = request.get("exitcode") or 0
    state = "finished" if exit_code == 0 else "preempted" if preempting else "failed"
    connection.execute(
        "UPDATE runs SET state = ?, exit_code = ?, preempting = 0, heartbeat_at = ? WHERE id = ?",
        (state, exit_code, now, run["id"]),
    )
