"""The `.metadata` of torch's distributed checkpoint (DCP, torch 2.13): a pickle that lists the ranges of every `.distcp` file."""

from __future__ import annotations

from collections import defaultdict

from ckptsync.layouts.formats import pickle_allowlist, pickle_reader
from ckptsync.layouts.formats.pickle_values import Items
from ckptsync.layouts.formats.stream import Malformed

Ranges = dict[str, list[tuple[int, int]]]


def ranges(content: bytes) -> Ranges:
    """The (offset, length) of every range, by file. Raises Malformed."""
    document = pickle_reader.read(content, steps=None)
    pickle_allowlist.enforce(document, pickle_allowlist.sharded)
    found: Ranges = defaultdict(list)
    for call in document.calls:
        if str(call.by) == "torch.distributed.checkpoint.filesystem._StorageInfo" and isinstance(call.state, Items):
            name, offset, length = (call.state.get(key) for key in ("relative_path", "offset", "length"))
            if not (isinstance(name, str) and isinstance(offset, int) and isinstance(length, int)):
                raise Malformed("lists a range without file, offset and length")
            found[name].append((offset, length))
    if not found:
        raise Malformed("lists no data")
    return found
