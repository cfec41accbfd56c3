"""torch.save files: zips with stored members, read from the end without torch.

Measured on torch 2.13: no comment after the end record, no compression, real CRCs, always a zip64 end record. The zip
directory is written last, so a truncated file has none.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ckptsync.layouts.formats.stream import Malformed, Stream, read_exactly

MAGIC = b"PK\x03\x04"
DIRECTORY_LIMIT = 256 * 1024 * 1024
PICKLE_LIMIT = 64 * 1024 * 1024
SMALL = 64 * 1024
"""The CRC of members up to this size is checked even without `deep`; `READ_LIMIT` bounds their sum."""
READ_LIMIT = 1024 * 1024

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Member:
    """One stored member: the offset of its local header, its size, and the CRC-32 of its bytes."""

    name: bytes
    offset: int
    size: int
    crc: int

    @property
    def text(self) -> str:
        """The name for a message, at most a line."""
        return repr(self.name[:100].decode("utf-8", "replace"))


def check(stream: Stream, size: int, *, deep: bool) -> bytes:
    """The `data.pkl` of a complete file of `size` bytes. Raises Malformed. `deep` checks the CRC of every member."""
    members = directory(stream, size)
    pickles = [member for member in members if member.name.rpartition(b"/")[2] == b"data.pkl"]
    if len(pickles) != 1:
        raise Malformed("is a zip, but not with exactly one data.pkl as torch.save writes it")
    if pickles[0].size > PICKLE_LIMIT:
        raise Malformed(f"its data.pkl has {pickles[0].size} bytes, more than the limit of {PICKLE_LIMIT}", transient=False)
    budget = READ_LIMIT
    for member in members:
        quick = member.size <= min(SMALL, budget)
        if quick or deep:
            budget -= member.size if quick else 0
            _check_crc(stream, member)
    return _content(stream, pickles[0])


def directory(stream: Stream, size: int) -> list[Member]:
    """The members in the order of the file. Raises Malformed if one overlaps the next or lies outside."""
    begin, length, count, end = _find_directory(stream, size)
    if begin + length != end or length > DIRECTORY_LIMIT or count * _ENTRY.size > length:
        raise Malformed("its zip directory does not end where the file ends")
    stream.seek(begin)
    members = sorted(_entries(read_exactly(stream, length), count), key=lambda member: member.offset)
    for member, limit in zip(members, [*(other.offset for other in members[1:]), begin], strict=True):
        if member.offset + _LOCAL.size + len(member.name) + member.size > limit:
            raise Malformed(f"its member {member.text} overlaps another or the directory")
    return members


def _find_directory(stream: Stream, size: int) -> tuple[int, int, int, int]:
    """The directory's offset, length and number of entries, and the offset where it must end."""
    if size < _END.size:
        raise Malformed(f"has {size} bytes, too short for a torch.save zip")
    stream.seek(size - _END.size)
    mark, *_, count, length, begin, comment = _END.unpack(read_exactly(stream, _END.size).ljust(_END.size))
    if mark != b"PK\x05\x06" or comment:
        raise Malformed("does not end with a zip directory, as torch.save files do: truncated")
    end = size - _END.size
    stream.seek(max(0, end - _LOCATOR.size))
    mark, _, where, _ = _LOCATOR.unpack(read_exactly(stream, _LOCATOR.size).ljust(_LOCATOR.size))
    if mark == b"PK\x06\x07":
        return _find_directory64(stream, where, end)
    return begin, length, count, end


def _find_directory64(stream: Stream, where: int, end: int) -> tuple[int, int, int, int]:
    if where + _END64.size + _LOCATOR.size != end:
        raise Malformed("its zip64 directory does not end where the file ends")
    stream.seek(where)
    mark, *_, count, length, begin = _END64.unpack(read_exactly(stream, _END64.size).ljust(_END64.size))
    if mark != b"PK\x06\x06":
        raise Malformed("its zip64 directory is damaged")
    return begin, length, count, where


def _entries(content: bytes, count: int) -> Iterator[Member]:
    position = 0
    for _ in range(count):
        if position + _ENTRY.size > len(content):
            raise Malformed("its zip directory is shorter than its number of entries")
        fields = _ENTRY.unpack_from(content, position)
        mark, flags, method, crc, packed, size, *lengths = fields[0], *fields[3:5], *fields[7:10], *fields[10:13]
        name_length, extra_length, comment_length = lengths
        position += _ENTRY.size
        name, extra = content[position:][:name_length], content[position + name_length :][:extra_length]
        position += name_length + extra_length + comment_length
        if mark != b"PK\x01\x02" or position > len(content):
            raise Malformed("its zip directory is damaged")
        packed, size, offset = _widen(extra, size, packed, fields[16])
        # A compressed member could be a decompression bomb; torch has never written one.
        if method != 0 or packed != size or flags & 1:
            raise Malformed("its zip holds a compressed or encrypted member, which torch.save never writes", transient=False)
        yield Member(name, offset, size, crc)
    if position != len(content):
        raise Malformed("its zip directory is longer than its number of entries")


def _widen(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Take the fields that say "see the zip64 extra" from there, in its order: size, packed size, offset."""
    wide: list[int] = []
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            body = extra[4 : 4 + length]
            wide = [number for (number,) in struct.iter_unpack("<Q", body[: len(body) // 8 * 8])]
        extra = extra[4 + length :]
    values = []
    for value in (size, packed, offset):
        if value == _FULL and not wide:
            raise Malformed("its zip64 fields are missing")
        values.append(wide.pop(0) if value == _FULL else value)
    return values[1], values[0], values[2]


def _locate(stream: Stream, member: Member) -> None:
    """Move to the first byte of a member."""
    stream.seek(member.offset)
    header = read_exactly(stream, _LOCAL.size + len(member.name))
    # No CRC covers the names, but each is stored twice: a changed byte shows in the comparison.
    if not header.startswith(MAGIC) or header[_LOCAL.size :] != member.name:
        raise Malformed(f"its member {member.text} has no header of that name")
    name_length, extra_length = _LOCAL.unpack_from(header)[-2:]
    stream.seek(member.offset + _LOCAL.size + name_length + extra_length)


def _content(stream: Stream, member: Member) -> bytes:
    _locate(stream, member)
    content = read_exactly(stream, member.size)
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise Malformed(f"its member {member.text} is corrupt (CRC mismatch)")
    return content


def _check_crc(stream: Stream, member: Member) -> None:
    """Read a member in pieces and check its CRC."""
    _locate(stream, member)
    crc, left = 0, member.size
    while left and (piece := stream.read(min(left, 1 << 20))):
        crc, left = zlib.crc32(piece, crc), left - len(piece)
    if left or crc != member.crc:
        raise Malformed(f"its member {member.text} is corrupt (CRC mismatch)")
