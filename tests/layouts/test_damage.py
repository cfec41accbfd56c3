"""Every file of every layout: cut to nothing, to half, by thirty bytes; deleted; one bit flipped."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptsync.layouts import inspect, list_files

Damage = Callable[[Path], None]

STATELESS = ("README.md", "config.json", "generation_config.json", "special_tokens_map.json", "training_args.bin")
"""Files without which a resumed training goes on exactly. adapter_config.json is not among them."""


def test_a_fresh_save_is_whole(checkpoint: Path, layout: str) -> None:
    quick, deep = inspect(checkpoint), inspect(checkpoint, deep=True)

    assert quick.problems == deep.problems == ()
    assert quick.resumable is (layout != "weights-only")
    assert quick.state is not None
    assert quick.state.global_step == 2
    assert quick.state.metrics["loss"] > 0


def test_every_cut_and_every_deletion_of_state_is_caught(
    checkpoint: Path, layout: str, tmp_path: Path, table: dict[str, Counter[str]]
) -> None:
    known = [file.path for file in list_files(checkpoint)]
    counts = table.setdefault(layout, Counter())
    missed = []

    for name in known:
        for kind, damage in DAMAGES.items():
            damaged = damaged_copy(checkpoint, tmp_path, name, damage)
            verdict, first = inspect(damaged, expected_names=known), inspect(damaged)
            counts.update({kind: bool(verdict.problems), f"of {kind}": 1})
            if kind == "deleted":
                counts.update({"deleted, first save": bool(first.problems), "of deleted, first save": 1})
            if not verdict.problems and bears_state(name):
                missed.append((name, kind))

    assert missed == []


def test_no_flipped_bit_in_what_torch_saved_passes_a_deep_look(
    checkpoint: Path, layout: str, tmp_path: Path, table: dict[str, Counter[str]]
) -> None:
    counts = table.setdefault(layout, Counter())
    missed = []

    for file in list_files(checkpoint):
        for eighth in range(1, 8):
            damaged = damaged_copy(checkpoint, tmp_path, file.path, flip(file.size * eighth // 8))
            quick, deep = inspect(damaged), inspect(damaged, deep=True)
            counts.update({"bit flip": bool(quick.problems), "of bit flip": 1})
            counts.update({"bit flip, deep": bool(deep.problems), "of bit flip, deep": 1})
            if deep.complete and members(damaged / file.path) != members(checkpoint / file.path):
                missed.append((file.path, eighth))

    assert missed == []


def members(path: Path) -> list[tuple[str, bytes]]:
    """What a zip holds; nothing of the padding between. What is no zip has nothing that a look could compare."""
    if not zipfile.is_zipfile(path) or path.suffix == ".distcp":
        return []
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


@pytest.mark.parametrize("what", ["optimizer", "pytorch_model"])
def test_a_folder_of_shards_that_is_gone_is_caught(what: str, saved: Callable[[str], Path], copy: Callable[[Path], Path]) -> None:
    damaged = copy(saved("fsdp-sharded"))
    folder = next(damaged.glob(f"{what}*"))

    shutil.rmtree(folder)

    assert not inspect(damaged).complete


def empty(path: Path) -> None:
    resize(path, 0)


def halve(path: Path) -> None:
    resize(path, path.stat().st_size // 2)


def shorten(path: Path) -> None:
    resize(path, max(0, path.stat().st_size - 30))


def flip(position: int) -> Damage:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[position] ^= 0x10
        path.write_bytes(content)

    return change


def resize(path: Path, size: int) -> None:
    os.truncate(path, size)


DAMAGES: dict[str, Damage] = {"cut to 0": empty, "cut to half": halve, "cut by 30": shorten, "deleted": Path.unlink}


def bears_state(name: str) -> bool:
    last = name.rpartition("/")[2]
    return not last.startswith("tokenizer") and last not in STATELESS and not last.endswith(".py")


def damaged_copy(source: Path, root: Path, name: str, damage: Damage) -> Path:
    """A tree of hard links in which one file is a copy of its own, damaged, with the modification time of the original."""
    target = root / source.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=os.link)
    victim = target / name
    victim.unlink()
    shutil.copy2(source / name, victim)
    damage(victim)
    # The times must not give it away: a damaged disk does not change them.
    for path in below(target):
        original = (source / path.relative_to(target)).stat()
        os.utime(path, ns=(original.st_atime_ns, original.st_mtime_ns))
    return target


def below(root: Path) -> Iterator[Path]:
    yield from sorted(root.rglob("*"), reverse=True)
    yield root
