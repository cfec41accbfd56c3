"""Bytes that nobody's Trainer wrote: an answer, never an exception, never code that runs, never much memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptsync.checkpoint import Problem
from ckptsync.layouts import inspect, trainer_state
from ckptsync.layouts.formats import pickle_reader, safetensors, torch_zip
from ckptsync.layouts.formats.pickle_values import Items
from ckptsync.layouts.formats.stream import Malformed

NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "optimizer.pt",
    "optimizer.bin",
    "rng_state.pth",
    "training_args.bin",
    "trainer_state.json",
    "tokenizer.json",
    "adapter_config.json",
    "latest",
    "global_step2/mp_rank_00_model_states.pt",
    "optimizer_0/.metadata",
    "optimizer_0/__0_0.distcp",
)
FRAGMENTS = (
    b"PK\x03\x04",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"{}",
    b'{"weight_map":{"a":"b"}}',
    b"\x80\x02}.",
    b"\xff" * 8,
    bytes(8),
)
noise = st.lists(st.binary(max_size=40) | st.sampled_from(FRAGMENTS), max_size=8).map(b"".join)


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def torch_file(content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip as torch.save lays it out, around any pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("archive/data.pkl", content)
    return stream.getvalue()


def problems_of(path: Path, name: str, content: bytes) -> list[Problem]:
    target = path / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    found = inspect(path).problems
    assert inspect(path, deep=True).problems
    return [problem for problem in found if problem.file == name]


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin"])
def test_a_pickle_that_would_run_a_command_is_refused_and_does_not_run(tmp_path: Path, name: str) -> None:
    witness = tmp_path / "witness"
    bomb = pickle.dumps(Bomb(f"touch {witness}"), protocol=2)

    (problem,) = problems_of(tmp_path / "checkpoint-2", name, torch_file(bomb))

    assert "system" in problem.reason
    assert not problem.transient
    assert not witness.exists()


def test_a_metadata_that_would_run_a_command_is_refused_and_does_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    (problem,) = problems_of(tmp_path / "checkpoint-2", "optimizer_0/.metadata", pickle.dumps(Bomb(f"touch {witness}")))

    assert "system" in problem.reason
    assert not witness.exists()


def test_a_key_that_takes_ages_to_hash_is_not_hashed() -> None:
    nested = b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 5000 + b"K\x01s."

    started = time.perf_counter()
    pickle_reader.read(nested)

    assert time.perf_counter() - started < 1


def test_a_memo_index_of_two_billion_takes_no_memory() -> None:
    tracemalloc.start()
    pickle_reader.read(b"\x80\x02K\x01r\xff\xff\xff\x7f.")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1_000_000


def test_a_compressed_member_is_refused_without_inflating_it(tmp_path: Path) -> None:
    bomb = torch_file(bytes(50_000_000), zipfile.ZIP_DEFLATED)

    (problem,) = problems_of(tmp_path / "checkpoint-2", "optimizer.pt", bomb)

    assert "compressed" in problem.reason


@pytest.mark.parametrize("length", [2**63, 2**32, 99_999_999, 10**9])
def test_a_huge_header_length_is_refused_without_reading_it(tmp_path: Path, length: int) -> None:
    (problem,) = problems_of(tmp_path / "checkpoint-2", "model.safetensors", struct.pack("<Q", length) + b"{}")

    assert "header" in problem.reason


@pytest.mark.parametrize("name", ["trainer_state.json", "config.json", "model.safetensors.index.json"])
def test_json_that_nests_a_hundred_thousand_deep_is_an_answer(tmp_path: Path, name: str) -> None:
    assert problems_of(tmp_path / "checkpoint-2", name, b"[" * 100_000)
    assert problems_of(tmp_path / "checkpoint-2", name, b'{"a":' * 100_000)


def test_an_index_that_names_a_file_outside_is_refused(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "../../etc/passwd"}}).encode()

    problems = problems_of(tmp_path / "checkpoint-2", "model.safetensors.index.json", index)

    assert any("no file name" in problem.reason for problem in problems)


@pytest.mark.parametrize("tag", ["../checkpoint-1", "/etc", "..", ".", "", "a/b", "\0"])
def test_a_latest_that_names_a_folder_outside_is_refused(tmp_path: Path, tag: str) -> None:
    assert problems_of(tmp_path / "checkpoint-2", "latest", tag.encode())


@pytest.mark.parametrize("target", ["/etc/passwd", "config.json", "missing"])
def test_a_symlink_is_refused_wherever_it_leads(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "link.json").symlink_to(target)

    (problem,) = [problem for problem in inspect(folder).problems if problem.file == "link.json"]

    assert "symlink" in problem.reason
    assert not problem.transient


def test_a_pipe_is_refused_and_never_opened(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    os.mkfifo(folder / "optimizer.pt")

    assert any(problem.file == "optimizer.pt" for problem in inspect(folder).problems)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(NAMES), content=noise, deep=st.booleans())
def test_any_bytes_in_any_file_are_an_answer(tmp_path: Path, name: str, content: bytes, deep: bool) -> None:
    target = tmp_path / "checkpoint-2" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)

    assert inspect(tmp_path / "checkpoint-2", deep=deep).problems


def never_raises_but_malformed(parse: Callable[[bytes], Any], content: bytes) -> None:
    with suppress(Malformed):
        parse(content)


@given(st.lists(st.sampled_from(range(256)), max_size=60).map(bytes))
def test_any_bytes_as_a_pickle_are_a_value_or_a_reason(content: bytes) -> None:
    never_raises_but_malformed(pickle_reader.read, content)
    never_raises_but_malformed(pickle_reader.read, content + b".")


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=plain_values, protocol=st.integers(2, 5))
def test_what_pickle_wrote_is_read_as_it_was(value: Any, protocol: int) -> None:
    content = pickle_reader.read(pickle.dumps(value, protocol=protocol))

    # Protocol 2 has no bytes: it writes a call of _codecs.encode.
    assert protocol > 2 or all(str(found) in ("_codecs.encode", "__builtin__.bytes") for found in content.globals)
    assert protocol == 2 or as_python(content.value) == value


def as_python(value: Any) -> Any:
    if isinstance(value, Items):
        return {key: as_python(item) for key, item in value.pairs}
    if isinstance(value, list | tuple):
        return type(value)(as_python(item) for item in value)
    return value


@given(header=st.binary(max_size=60) | plain_values.map(lambda value: repr(value).encode()), tail=st.binary(max_size=20))
def test_any_header_of_safetensors_is_a_count_or_a_reason(header: bytes, tail: bytes) -> None:
    content = struct.pack("<Q", len(header)) + header + tail

    never_raises_but_malformed(lambda whole: safetensors.check(io.BytesIO(whole), len(whole)), content)


entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "X", 3, None]),
        "shape": st.lists(st.integers() | st.text(max_size=1), max_size=3),
        "data_offsets": st.lists(st.integers(-5, 50) | st.none(), max_size=3),
    },
)


@given(entries=st.dictionaries(st.text(max_size=3), entries, max_size=4), size=st.integers(0, 60))
def test_any_entries_of_safetensors_are_a_count_or_a_reason(entries: dict[str, Any], size: int) -> None:
    header = json.dumps(entries).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(size)

    never_raises_but_malformed(lambda whole: safetensors.check(io.BytesIO(whole), len(whole)), content)


@given(noise)
def test_any_bytes_as_a_zip_are_a_pickle_or_a_reason(content: bytes) -> None:
    never_raises_but_malformed(lambda whole: torch_zip.check(io.BytesIO(whole), len(whole), deep=True), content)


@given(position=st.integers(0, 400), bits=st.integers(1, 255), cut=st.integers(0, 300))
def test_a_changed_zip_is_the_same_pickle_or_a_reason(position: int, bits: int, cut: int) -> None:
    whole = bytearray(torch_file(b"\x80\x02}."))
    whole[position % len(whole)] ^= bits
    content = bytes(whole[: len(whole) - cut])

    try:
        found = torch_zip.check(io.BytesIO(content), len(content), deep=False)
    except Malformed:
        return

    assert found == b"\x80\x02}."


@given(noise | plain_values.map(lambda value: json.dumps(repr(value)).encode()))
def test_any_bytes_as_a_trainer_state_are_a_state_or_a_reason(content: bytes) -> None:
    never_raises_but_malformed(trainer_state.parse, content)
