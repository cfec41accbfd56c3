"""Durable writes, removal and the sweep, with real processes that die in the middle."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ckptsync import durable

DYING_WRITER = """
import os, signal, sys
from pathlib import Path
from ckptsync import durable

path, limit, seen = Path(sys.argv[1]), int(sys.argv[2]), 0

def die_at_the_nth(event, arguments):
    global seen
    if event in ("open", "os.rename", "os.remove") and str(path.parent) in str(arguments[0]):
        seen += 1
        if seen == limit:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die_at_the_nth)
durable.write_json(path, {"is": "new", "filler": "x" * 100_000})
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_writer_that_is_killed_at_any_moment_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    contents, limit, code = [], 0, -1

    while code != 0:
        limit += 1
        path.write_text('{"is": "old"}')
        code = subprocess.run([sys.executable, "-c", DYING_WRITER, str(path), str(limit)], check=False).returncode
        contents.append(json.loads(path.read_text())["is"])

    # Open, rename and the sync of the folder: fewer means that the hook saw nothing.
    assert limit >= 4
    assert contents[-1] == "new"
    assert contents == sorted(contents, reverse=True)
    assert durable.sweep(tmp_path) != []
    assert names(tmp_path) == {"run.json"}


def test_an_error_while_writing_keeps_the_old_content_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    durable.write_json(path, {"is": "old"})

    with pytest.raises(UnicodeEncodeError):
        durable.write_text(path, "half of a pair: \ud800")

    assert durable.read_json(path) == {"is": "old"}
    assert names(tmp_path) == {"run.json"}


def test_a_file_name_that_is_not_utf_8_can_be_written_and_read_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.bin")

    durable.write_json(tmp_path / "snapshot.json", {"path": name})

    assert durable.read_json(tmp_path / "snapshot.json") == {"path": name}


def test_a_secret_file_is_never_readable_by_others_even_where_a_crash_left_its_temporary_name(tmp_path: Path) -> None:
    (tmp_path / f".tmp-run.json-{os.getpid()}").touch(mode=0o666)

    durable.write_json(tmp_path / "run.json", {"a": 1}, mode=0o600)

    assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": ', b"\xff\xfe", b"[" * 100_000, b"null"])
def test_anything_but_a_json_object_reads_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)

    assert durable.read_json(tmp_path / "x.json") is None


def test_a_missing_file_reads_as_none(tmp_path: Path) -> None:
    assert durable.read_json(tmp_path / "missing.json") is None


def test_parents_are_made_too_and_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    folder = durable.make_folder(tmp_path / "a" / "b" / "c")
    (folder / "kept").touch()

    assert durable.make_folder(folder) == folder
    assert names(folder) == {"kept"}


def test_a_tree_is_removed_although_an_earlier_removal_left_its_remains(tmp_path: Path) -> None:
    (tmp_path / f".tmp-wandb-{os.getpid()}").mkdir()
    (tmp_path / f".tmp-wandb-{os.getpid()}" / "still-open.log").touch()
    (tmp_path / "wandb").mkdir()

    durable.remove_tree(tmp_path / "wandb")
    durable.remove_tree(tmp_path / "wandb")

    assert "wandb" not in names(tmp_path)


def test_a_sweep_deletes_only_temporary_names_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    swept = tmp_path / "swept"
    (swept / ".tmp-half" / "files").mkdir(parents=True)
    (swept / ".tmp-link").symlink_to(tmp_path / "precious")
    (swept / "checkpoint-5.abc").mkdir()
    (swept / ".tmpfile").touch()

    found = durable.sweep(swept)

    assert sorted(found) == [".tmp-half", ".tmp-link"]
    assert names(swept) == {"checkpoint-5.abc", ".tmpfile"}
    assert names(tmp_path / "precious") == {"file"}


def test_sweeping_a_missing_folder_finds_nothing(tmp_path: Path) -> None:
    assert durable.sweep(tmp_path / "missing") == []


def test_lines_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"

    def write(letter: str) -> None:
        for _ in range(50):
            durable.append_line(path, letter * 2000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    lines = path.read_text().splitlines()
    assert len(lines) == 200
    assert set(lines) == {letter * 2000 for letter in "abcd"}
