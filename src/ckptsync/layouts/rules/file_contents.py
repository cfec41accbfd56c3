"""Each file is complete by its own format, and its pickle names only what such a file may name."""

from __future__ import annotations

from collections.abc import Iterator

from ckptsync.checkpoint import Problem
from ckptsync.layouts import file_names
from ckptsync.layouts.folder import Folder
from ckptsync.layouts.formats import json_document, pickle_allowlist, pickle_reader, safetensors, torch_zip
from ckptsync.layouts.formats.stream import read_exactly

TORCH = (".pt", ".pth", ".bin")


def check(folder: Folder, name: str, tensors: dict[str, int], *, deep: bool) -> Iterator[Problem]:
    """The problems of one file. Adds a safetensors file's number of tensors to `tensors`.

    What a callback or a user put there is not looked at, but for a pickle that runs code.
    """
    size = folder.files[name].size
    if not file_names.is_of_save(name):
        if size and name.endswith(TORCH):
            _check_torch(folder, name, deep=deep)
    elif size == 0:
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
        # Other programs put files beside the Trainer's, and their `.bin` may hold anything.
        if not file_names.is_torch_save(name) and read_exactly(stream, 4) != torch_zip.MAGIC:
            return
        content = torch_zip.check(stream, folder.files[name].size, deep=deep)
    pickle_allowlist.enforce(pickle_reader.read(content), _allowlist(name))


def _allowlist(name: str) -> pickle_allowlist.Allowlist:
    """The allowlist for the pickle in this file."""
    if file_names.in_deepspeed_tree(name):
        return pickle_allowlist.deepspeed
    return pickle_allowlist.tensors if file_names.is_loaded_on_resume(name) else pickle_allowlist.harmless


def _check_json(folder: Folder, name: str, *, deep: bool) -> None:
    size = folder.files[name].size
    if size <= json_document.PARSE_LIMIT or deep:
        json_document.check(folder.read(name, limit=json_document.READ_LIMIT))
        return
    with folder.open(name) as stream:
        json_document.check_ends(stream, size)
