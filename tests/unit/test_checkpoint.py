"""The values: names, fingerprints, and what a version says of itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptsync import layouts
from ckptsync.checkpoint import File, Run, TrainingState, Version, fingerprint, step_of
from tests.checkpoints import make_checkpoint


def version(*, aliases: tuple[str, ...] = (), metadata: dict[str, object] | None = None) -> Version:
    return Version("me/p/checkpoint-a:v7", "checkpoint-a", "v7", aliases, 1, 1, "d", 50.0, metadata or {})


@pytest.mark.parametrize(
    "name",
    ["checkpoint-", "checkpoint-5x", "checkpoint-5.partial", "xcheckpoint-5", "checkpoint--5", "checkpoint-5/", "Checkpoint-5"],
)
def test_a_folder_name_that_the_trainer_does_not_use_has_no_step(name: str) -> None:
    assert step_of(name) is None


def test_another_save_of_the_same_step_has_another_fingerprint_even_with_the_same_bytes(tmp_path: Path) -> None:
    first = fingerprint(layouts.list_files(make_checkpoint(tmp_path, 5, saved_at=1_000_000)))

    second = fingerprint(layouts.list_files(make_checkpoint(tmp_path, 5, saved_at=1_000_001)))

    assert first != second


def test_the_fingerprint_sees_a_change_of_name_size_or_a_single_nanosecond(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 5)
    optimizer = folder / "optimizer.pt"
    prints = [fingerprint(layouts.list_files(folder))]

    times = optimizer.stat()
    os.utime(optimizer, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    prints.append(fingerprint(layouts.list_files(folder)))
    with optimizer.open("ab") as file:
        file.write(b"x")
    os.utime(optimizer, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    prints.append(fingerprint(layouts.list_files(folder)))
    optimizer.rename(folder / "optimizer.bin")
    prints.append(fingerprint(layouts.list_files(folder)))

    assert len(set(prints)) == 4


def test_a_name_that_is_not_utf_8_has_a_fingerprint() -> None:
    assert len(fingerprint([File(os.fsdecode(b"caf\xe9"), 1, 2)])) == 12


def test_a_training_is_finished_by_its_steps_alone() -> None:
    assert TrainingState(global_step=10, max_steps=10).finished
    assert TrainingState(global_step=11, max_steps=10).finished
    assert not TrainingState(global_step=9, max_steps=10).finished
    assert not TrainingState(global_step=10, max_steps=-1).finished
    assert not TrainingState(global_step=0, max_steps=0).finished


@pytest.mark.parametrize(
    ("aliases", "metadata", "step"),
    [
        ((), {"ckptsync": {"step": 5}, "global_step": 6}, 5),
        ((), {"global_step": 6}, 6),
        (("latest", "checkpoint_global_step_7"), {}, 7),
        (("step-8",), {"ckptsync": "hostile"}, 8),
        (("latest",), {"global_step": "9"}, None),
    ],
)
def test_the_step_of_a_version_is_ours_else_that_of_the_callback_of_hf(
    aliases: tuple[str, ...], metadata: dict[str, object], step: int | None
) -> None:
    assert version(aliases=aliases, metadata=metadata).step == step


def test_a_version_without_our_metadata_was_saved_when_it_was_made() -> None:
    assert version().saved_at == 50.0
    assert version(metadata={"ckptsync": {"saved_at": 40}}).saved_at == 40.0
    assert version(metadata={"ckptsync": {"saved_at": "never"}}).saved_at == 50.0


def test_a_run_is_shown_with_the_names_that_are_known() -> None:
    assert str(Run("a", "p", "me")) == "me/p/a"
    assert str(Run("a", "p")) == "p/a"
