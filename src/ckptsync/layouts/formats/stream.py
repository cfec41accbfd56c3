"""What a format reads from, and the error that it raises."""

from __future__ import annotations

from typing import Protocol


class Malformed(ValueError):  # noqa: N818 -- never leaves this package
    """Why one file is invalid. `transient` is false where no further writing could complete it."""

    def __init__(self, reason: str, *, transient: bool = True) -> None:
        super().__init__(reason)
        self.transient = transient


class Stream(Protocol):
    """What a format needs of an open file."""

    def read(self, size: int, /) -> bytes | None: ...

    def seek(self, offset: int, /) -> int: ...


def read_exactly(stream: Stream, size: int) -> bytes:
    """Read `size` bytes from an unbuffered stream; fewer only at its end."""
    pieces: list[bytes] = []
    while size > 0 and (piece := stream.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


class Window:
    """A byte range of a stream, as a stream."""

    def __init__(self, stream: Stream, offset: int, length: int) -> None:
        self._stream, self._offset, self._length, self._at = stream, offset, length, 0

    def seek(self, offset: int, /) -> int:
        self._at = min(offset, self._length)
        return self._at

    def read(self, size: int, /) -> bytes | None:
        self._stream.seek(self._offset + self._at)
        content = self._stream.read(min(size, self._length - self._at))
        self._at += len(content or b"")
        return content
