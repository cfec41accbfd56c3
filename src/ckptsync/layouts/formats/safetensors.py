"""safetensors: is the file as long as its header says? Reads the header only, never a tensor.

The format: eight bytes of header length (little endian), a JSON header with the offsets of each tensor, then the tensors
without gaps. It has no checksum: a changed byte in a tensor goes unnoticed.
"""

from __future__ import annotations

import json
import math
from typing import Any

from ckptsync.layouts.formats.stream import Malformed, Stream, read_exactly

HEADER_LIMIT = 100_000_000
"""The longest header that safetensors itself reads (0.8.0)."""

BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


def check(stream: Stream, size: int) -> int:
    """The number of tensors in a safetensors file of `size` bytes. Raises Malformed if it is incomplete."""
    if size < 8:
        raise Malformed(f"{size} bytes, too short for a safetensors header")
    length = int.from_bytes(read_exactly(stream, 8), "little")
    if length > min(HEADER_LIMIT, size - 8):
        raise Malformed(f"its header claims {length} bytes, the file has {size}", transient=length <= HEADER_LIMIT)
    ends = _spans(read_exactly(stream, length))
    expected = 8 + length + (ends[-1][1] if ends else 0)
    if size != expected:
        raise Malformed(f"has {size} bytes, its header says {expected}")
    return len(ends)


def _spans(header: bytes) -> list[tuple[int, int]]:
    """The byte range of each tensor in order. Raises Malformed if they leave gaps or overlap."""
    spans: list[tuple[int, int]] = []

    def note(value: dict[str, Any]) -> dict[str, Any] | None:
        if "data_offsets" not in value:
            return value
        spans.append(_span(value))
        # Keeping them would turn a hostile header of 100 MB into a gigabyte of dictionaries.
        return None

    try:
        document = json.loads(header, object_hook=note)
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise error if isinstance(error, Malformed) else Malformed("its header is not valid safetensors JSON") from None
    if not isinstance(document, dict):
        raise Malformed("its header is not a JSON object")
    spans.sort()
    for (_, end), (begin, _) in zip([(0, 0), *spans], spans, strict=False):
        if begin != end:
            raise Malformed(f"its header leaves a gap or an overlap at byte {min(begin, end)}")
    return spans


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end):
        raise Malformed(f"its header has impossible offsets {begin!r}, {end!r}"[:200])
    bits = BITS.get(entry["dtype"])
    if bits and math.prod(entry["shape"]) * bits != (end - begin) * 8:
        raise Malformed("its header has a tensor whose shape does not match its offsets")
    return begin, end
