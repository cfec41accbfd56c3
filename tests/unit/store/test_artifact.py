"""What a snapshot is called in the store."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from ckptsync.checkpoint import Run, Snapshot, Version
from ckptsync.record import Record
from ckptsync.store import artifact
from ckptsync.upload.spool import Spool
from tests.checkpoints import checkpoint_at, make_checkpoint

RUN = Run("abc", "p", "me")


def pinned(output_dir: Path, step: int, **changes: object) -> Snapshot:
    spool = Spool(output_dir)
    spool.prepare()
    return spool.pin(checkpoint_at(make_checkpoint(output_dir, step, **changes)))  # type: ignore[arg-type]


def test_characters_that_only_a_run_id_may_have_become_dashes_and_the_name_is_cut_where_w_and_b_cuts() -> None:
    assert artifact.artifact_name("my run@7") == "checkpoint-my-run-7"
    assert artifact.artifact_name("é") == "checkpoint--"
    assert len(artifact.artifact_name("x" * 300)) == 128


def test_versions_of_the_callback_of_hf_are_looked_for_after_ours_and_each_name_once() -> None:
    assert artifact.candidate_names(RUN.run_id) == ("checkpoint-abc", "model-abc")


def test_the_aliases_tell_step_best_final_and_preempted(tmp_path: Path) -> None:
    ordinary = pinned(tmp_path, 5, best="/elsewhere/out/checkpoint-4")
    special = pinned(tmp_path, 10, best="/elsewhere/out/checkpoint-10", max_steps=10)

    assert artifact.describe(ordinary, RUN, Record({}), stem="abc").aliases == ("step-5",)
    assert artifact.describe(special, RUN, Record({}), stem="abc", preempted=True).aliases == (
        "step-10",
        "best",
        "final",
        "preempted",
    )


def test_the_metadata_is_what_the_design_promises_and_w_and_b_accepts(tmp_path: Path) -> None:
    metrics = {"loss": 0.5, "eval_loss": math.nan, "grad_norm": math.inf, **{f"m{number}": 1.0 for number in range(200)}}
    snapshot = pinned(tmp_path, 5, metrics=metrics)

    upload = artifact.describe(snapshot, RUN, Record({"command": ["python", "train.py"], "cwd": "/home"}), stem="abc")

    ours = upload.metadata["ckptsync"]
    assert (upload.metadata["global_step"], upload.metadata["loss"], upload.metadata["epoch"]) == (5, 0.5, 0.005)
    assert len(upload.metadata) <= 100
    assert json.dumps(dict(upload.metadata), allow_nan=False)
    assert {
        "version",
        "run",
        "step",
        "saved_at",
        "layout",
        "world_size",
        "resumable",
        "files",
        "bytes",
        "libraries",
    } < ours.keys()
    assert {"host", "output_dir", "command", "cwd"} < ours.keys()
    assert ours["output_dir"] == str(tmp_path)
    assert ours["bytes"] == sum(path.stat().st_size for path in (tmp_path / "checkpoint-5").iterdir())


def test_a_command_with_a_secret_is_left_out_of_the_metadata(tmp_path: Path) -> None:
    snapshot = pinned(tmp_path, 5)

    upload = artifact.describe(snapshot, RUN, Record({"command": ["python", "train.py", "--hub_token", "abc"]}), stem="abc")

    assert "command" not in upload.metadata["ckptsync"]


@pytest.mark.parametrize("command", [None, [], "rm -rf /", ["python", 5], {"a": "b"}])
def test_a_command_in_a_version_that_is_no_list_of_words_is_none(command: object) -> None:
    version = Version("me/p/c:v0", "c", "v0", (), 1, 1, "d", 0.0, {"ckptsync": {"command": command}})

    assert artifact.recorded_command(version) is None


def test_the_versions_of_libraries_are_told_without_importing_them() -> None:
    assert artifact.libraries().keys() >= {"transformers", "wandb"}
    assert os.environ.get("WANDB_SERVICE") is None
