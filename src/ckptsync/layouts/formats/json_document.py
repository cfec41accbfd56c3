"""JSON: is the document complete? By parsing it, or by its two ends where that would take too much memory."""

from __future__ import annotations

import json

from ckptsync.layouts.formats.stream import Malformed, Stream, read_exactly

PARSE_LIMIT = 1024 * 1024
"""Longer documents (tokenizer.json has up to 30 MB) are parsed in a deep check only: that takes 100 MB of memory."""

READ_LIMIT = 256 * 1024 * 1024


def check(content: bytes) -> None:
    """Parse the document, or raise Malformed; RecursionError where it nests too deeply."""
    try:
        json.loads(content)
    except ValueError:
        raise Malformed("truncated or invalid JSON") from None


def check_ends(stream: Stream, size: int) -> None:
    """Check only that the document closes as it opened. Raises Malformed.

    An indented document closes at the start of a line, which one that was cut after an inner bracket does not.
    """
    head = read_exactly(stream, 64).lstrip()
    stream.seek(size - 64)
    tail = read_exactly(stream, 64).rstrip()
    closing = {b"{": b"}", b"[": b"]"}.get(head[:1], b"\0")
    if head[1:].startswith(b"\n"):
        closing = b"\n" + closing
    if not tail.endswith(closing):
        raise Malformed("truncated or invalid JSON")
