"""torch's distributed checkpoints (FSDP sharded): every `.distcp` file is as long as its `.metadata` says (torch 2.13).

A first save renames `.metadata` into place once every rank has synced its .distcp. A second save into the same folder
truncates them while the old `.metadata` stays: then only sizes and times show it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath

from ckptsync.checkpoint import Problem
from ckptsync.layouts.folder import Folder
from ckptsync.layouts.formats import dcp_metadata, pickle_allowlist, pickle_reader, torch_zip
from ckptsync.layouts.formats.stream import Window
from ckptsync.layouts.rules.read_errors import as_problems

NAME = ".metadata"
QUICK_LIMIT = 16 * 1024 * 1024
"""Above it (some 100,000 ranges) only a deep check reads the list: that takes seconds and gigabytes."""
DEEP_LIMIT = 1024 * 1024 * 1024


def check(folder: Folder, *, deep: bool) -> Iterator[Problem]:
    """Every folder of .distcp files has its .metadata, and each file the length that it says."""
    parents = {str(PurePosixPath(name).parent) for name in folder.files if name.endswith((".distcp", "/" + NAME))}
    for parent in sorted(parents):
        metadata = str(PurePosixPath(parent, NAME))
        if metadata not in folder.files:
            yield Problem(metadata, "missing: torch writes it last, when every rank has finished", transient=True)
        else:
            yield from as_problems(metadata, partial(_check_folder, folder, parent, metadata, deep=deep))


def _check_folder(folder: Folder, parent: str, metadata: str, *, deep: bool) -> Iterator[Problem]:
    if folder.files[metadata].size > QUICK_LIMIT and not deep:
        return
    listed = dcp_metadata.ranges(folder.read(metadata, limit=DEEP_LIMIT))
    present = folder.under(parent)
    for name, spans in sorted(listed.items()):
        path = str(PurePosixPath(parent, name))
        expected = max(offset + length for offset, length in spans)
        if name not in present:
            yield Problem(path, f"missing, but {metadata} lists it", transient=True)
        elif present[name].size != expected:
            yield Problem(path, f"has {present[name].size} bytes, {metadata} says {expected}", transient=True)
        elif deep:
            yield from as_problems(path, partial(_check_ranges, folder, path, spans))


def _check_ranges(folder: Folder, path: str, spans: list[tuple[int, int]]) -> Iterator[Problem]:
    """Every range is a complete torch.save file: the CRCs match, and the pickle names only what it may."""
    with folder.open(path) as stream:
        for offset, length in sorted(spans):
            content = torch_zip.check(Window(stream, offset, length), length, deep=True)
            pickle_allowlist.enforce(pickle_reader.read(content), pickle_allowlist.tensors)
    yield from ()
