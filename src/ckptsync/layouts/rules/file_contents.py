"""One file of a checkpoint at a time: is it whole by its own format? Never executes what a file says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from ckptsync.checkpoint import Problem
from ckptsync.layouts import file_names
from ckptsync.layouts.folder import Folder, Malformed, read_exactly
from ckptsync.layouts.formats import pickle_allowlist, pickle_reader, safetensors, torch_zip

JSON_LIMIT = 1024 * 1024
"""Longer JSON (tokenizer.json has up to 30 MB) is judged by its two ends: parsed it would take 100 MB of memory."""
NEVER_EMPTY = (".json", ".safetensors", ".pt", ".pth", ".bin", ".distcp", ".model", ".jinja", ".txt", ".md", ".metadata")
TORCH = (".pt", ".pth", ".bin")


def attempt(name: str, check: Callable[[], Iterator[Problem]]) -> Iterator[Problem]:
    """Run a check of one file, and turn whatever its content or the file system does into a Problem."""
    try:
        yield from check()
    except Malformed as error:
        yield Problem(name, str(error), transient=error.transient)
    except FileNotFoundError:
        yield Problem(name, "vanished while it was looked at", transient=True)
    except PermissionError:
        yield Problem(name, "cannot be read by this user", transient=False)
    except OSError as error:
        yield Problem(name, f"cannot be read: {error.strerror or error}", transient=True)
    except (MemoryError, RecursionError):
        yield Problem(name, "too large or too deeply nested to be read", transient=False)


def check(folder: Folder, name: str, tensors: dict[str, int], *, deep: bool) -> Iterator[Problem]:
    """The problems of one file. Adds the number of tensors of a safetensors file to `tensors`."""
    size = folder.files[name].size
    if size == 0 and name.endswith((*NEVER_EMPTY, "zero_to_fp32.py", "zero_to_torch.py", "latest")):
        yield Problem(name, "empty", transient=True)
    elif name.endswith(".safetensors"):
        with folder.open(name) as stream:
            tensors[name] = safetensors.check(stream, size)
    elif name.endswith(TORCH):
        _check_torch(folder, name, deep=deep)
    elif name.endswith(".json"):
        _check_json(folder, name, deep=deep)


def _check_torch(folder: Folder, name: str, *, deep: bool) -> None:
    with folder.open(name) as stream:
        # Other programs put files of their own beside the Trainer's, and `.bin` may mean anything there.
        if not file_names.is_torch_save(name) and read_exactly(stream, 4) != torch_zip.MAGIC:
            return
        content = torch_zip.check(stream, folder.files[name].size, deep=deep)
    pickle_allowlist.enforce(pickle_reader.read(content), _rule(name))


def _rule(name: str) -> pickle_allowlist.Rule:
    """What the pickle in a file may name."""
    if file_names.in_deepspeed_tree(name):
        return pickle_allowlist.deepspeed
    return pickle_allowlist.tensors if file_names.is_loaded_on_resume(name) else pickle_allowlist.harmless


def _check_json(folder: Folder, name: str, *, deep: bool) -> None:
    size = folder.files[name].size
    if size > JSON_LIMIT and not deep:
        _check_ends(folder, name, size)
        return
    try:
        json.loads(folder.read(name, limit=256 * JSON_LIMIT))
    except ValueError as error:
        raise error if isinstance(error, Malformed) else Malformed("not JSON to its end") from None


def _check_ends(folder: Folder, name: str, size: int) -> None:
    """An indented document closes at the start of a line; a nested one that was cut after a bracket does not."""
    with folder.open(name) as stream:
        head = read_exactly(stream, 64).lstrip()
        stream.seek(size - 64)
        tail = read_exactly(stream, 64).rstrip()
    closing = {b"{": b"}", b"[": b"]"}.get(head[:1], b"\0")
    if head[1:].startswith(b"\n"):
        closing = b"\n" + closing
    if not tail.endswith(closing):
        raise Malformed("not JSON to its end")
