"""The folders of torch's distributed checkpoint (FSDP sharded): `.metadata` and the ranges that it lists (torch 2.13).

On a first save `.metadata` is renamed into place when every rank has synced its .distcp. On a second save into the same
folder the old one stays while they are truncated: only the sizes and the times then tell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath

from ckptsync.checkpoint import Problem
from ckptsync.layouts.folder import Folder, Malformed, Stream
from ckptsync.layouts.formats import pickle_allowlist, pickle_reader, torch_zip
from ckptsync.layouts.rules.file_contents import attempt

NAME = ".metadata"
QUICK_LIMIT = 16 * 1024 * 1024
"""Above it (some 100,000 ranges) only a deep look reads the list: the watcher has no seconds and gigabytes for it."""
DEEP_LIMIT = 1024 * 1024 * 1024

Ranges = dict[str, list[tuple[int, int]]]


class Window:
    """A range of a file as a stream of its own."""

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


def check(folder: Folder, *, deep: bool) -> Iterator[Problem]:
    """Every folder of .distcp files has its .metadata, and each file is as long as that says."""
    parents = {str(PurePosixPath(name).parent) for name in folder.files if name.endswith((".distcp", "/" + NAME))}
    for parent in sorted(parents):
        metadata = str(PurePosixPath(parent, NAME))
        if metadata not in folder.files:
            yield Problem(metadata, "missing: torch writes it when every rank has finished", transient=True)
        else:
            yield from attempt(metadata, partial(_check_folder, folder, parent, metadata, deep=deep))


def _check_folder(folder: Folder, parent: str, metadata: str, *, deep: bool) -> Iterator[Problem]:
    if folder.files[metadata].size > QUICK_LIMIT and not deep:
        return
    listed = ranges(folder.read(metadata, limit=DEEP_LIMIT))
    here = folder.under(parent)
    for name, spans in sorted(listed.items()):
        path = str(PurePosixPath(parent, name))
        expected = max(offset + length for offset, length in spans)
        if name not in here:
            yield Problem(path, f"missing, but {metadata} lists it", transient=True)
        elif here[name].size != expected:
            yield Problem(path, f"{here[name].size} bytes, {metadata} says {expected}", transient=True)
        elif deep:
            yield from attempt(path, partial(_check_ranges, folder, path, spans))


def ranges(content: bytes) -> Ranges:
    """The (offset, length) of everything that a .metadata lists, by file, or Malformed."""
    document = pickle_reader.read(content, steps=None)
    pickle_allowlist.enforce(document, pickle_allowlist.sharded)
    found: Ranges = defaultdict(list)
    for made in document.made:
        if str(made.by) == "torch.distributed.checkpoint.filesystem._StorageInfo" and isinstance(made.state, pickle_reader.Items):
            name, offset, length = (made.state.get(key) for key in ("relative_path", "offset", "length"))
            if not (isinstance(name, str) and isinstance(offset, int) and isinstance(length, int)):
                raise Malformed("lists a range without a file, an offset and a length")
            found[name].append((offset, length))
    if not found:
        raise Malformed("lists no data")
    return found


def _check_ranges(folder: Folder, path: str, spans: list[tuple[int, int]]) -> Iterator[Problem]:
    """Every range is a whole file of torch.save: its CRCs, and what its pickle names."""
    with folder.open(path) as stream:
        for offset, length in sorted(spans):
            content = torch_zip.check(Window(stream, offset, length), length, deep=True)
            pickle_allowlist.enforce(pickle_reader.read(content), pickle_allowlist.tensors)
    yield from ()
