"""Weights in several files: the index and the numbers in the names agree with the files."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from ckptsync.checkpoint import Problem
from ckptsync.layouts import file_names
from ckptsync.layouts.folder import Folder
from ckptsync.layouts.formats.stream import Malformed

INDEX_LIMIT = 64 * 1024 * 1024


def check_index(folder: Folder, index: str, tensors: Mapping[str, int]) -> Iterator[Problem]:
    """Every shard that the index lists is present. `tensors` has the number of tensors in each complete shard.

    Raises Malformed if the index itself is invalid.
    """
    listed = Counter(_weight_map(folder.read(index, limit=INDEX_LIMIT)).values())
    for shard, count in sorted(listed.items()):
        path = str(PurePosixPath(index).with_name(shard))
        if path not in folder.files:
            yield Problem(path, f"missing, but {index} lists it", transient=True)
        elif tensors.get(path, count) != count:
            yield Problem(path, f"holds {tensors[path]} tensors, {index} lists {count}", transient=True)


def _weight_map(content: bytes) -> Mapping[str, str]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise Malformed("truncated or invalid JSON" if content else "empty") from None
    listed = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise Malformed("has no weight_map")
    for shard in listed.values():
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard:
            raise Malformed(f"lists {shard!r}, which is no file name"[:200], transient=False)
    return listed


def check_numbers(folder: Folder) -> Iterator[Problem]:
    """No gaps in `-0000K-of-0000N`, the same N in all names, and an index for the shards."""
    groups: dict[tuple[str, str], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for name in folder.files:
        if match := file_names.SHARD.fullmatch(name):
            groups[match["stem"], match["suffix"]][int(match["count"])].add(int(match["number"]))
    for (stem, suffix), counts in groups.items():
        index = f"{stem}{suffix}.index.json"
        if index not in folder.files:
            yield Problem(index, "missing, but its shards are present", transient=True)
        if len(counts) > 1:
            found = " and ".join(f"of {count}" for count in sorted(counts))
            yield Problem(index, f"shards of two different saves: {found}", transient=True)
        for count, numbers in counts.items():
            # Hostile names could say `of 99999`: one problem, not one for each gap.
            if len(numbers) != count or max(numbers) != count or min(numbers) != 1:
                yield Problem(f"{stem}-?-of-{count:05d}{suffix}", f"{len(numbers)} of {count} shards present", transient=True)
