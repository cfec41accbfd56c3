"""The rules that hold between the files of a checkpoint, tried on real saves and on hand-made DeepSpeed trees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckptsync.checkpoint import Rows, Verdict
from ckptsync.errors import IntegrityError
from ckptsync.layouts import inspect, list_files, log_history, read_state, rows_digest

Find = Callable[[str], Path]
Copy = Callable[[Path], Path]


def later(path: Path, seconds: float = 1) -> None:
    """Give a file a modification time after that of trainer_state.json."""
    state = path.parent / "trainer_state.json"
    moment = state.stat().st_mtime_ns + int(seconds * 1e9)
    os.utime(path, ns=(moment, moment))


def reasons(verdict: Verdict) -> str:
    return "; ".join(map(str, verdict.problems))


@pytest.mark.parametrize(
    ("layout_name", "expected", "ranks"),
    [
        ("plain", "plain", 1),
        ("sharded", "sharded", 1),
        ("peft", "peft", 1),
        ("weights-only", "weights-only", None),
        ("ddp", "plain", 2),
        ("fsdp-full", "fsdp-full", 2),
        ("fsdp-sharded", "fsdp-sharded", 2),
        ("zero-1", "deepspeed", 2),
        ("zero-3", "deepspeed", 2),
    ],
)
def test_the_layout_and_the_number_of_ranks_are_recognised(saved: Find, layout_name: str, expected: str, ranks: int) -> None:
    verdict = inspect(saved(layout_name))

    assert (verdict.layout, verdict.world_size) == (expected, ranks)


def test_a_weights_only_save_is_complete_but_not_resumable_and_says_so(saved: Find) -> None:
    verdict = inspect(saved("weights-only"))

    assert verdict.complete
    assert not verdict.resumable
    assert "optimizer.pt, scheduler.pt, rng_state.pth missing" in verdict.notes[0]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_save_without_one_of_optimizer_scheduler_and_rng_is_not_weights_only(saved: Find, copy: Copy, name: str) -> None:
    damaged = copy(saved("plain"))
    (damaged / name).unlink()

    assert f"{name}: missing, but other training state is present" in reasons(inspect(damaged))


def test_a_killed_rotation_does_not_pass_for_a_weights_only_save(saved: Find, copy: Copy) -> None:
    damaged = copy(saved("plain"))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (damaged / name).unlink()

    assert "files were deleted" in reasons(inspect(damaged))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_state_newer_than_the_trainer_state_means_another_save(saved: Find, copy: Copy, name: str) -> None:
    resaved = copy(saved("plain"))
    later(resaved / name)

    (problem,) = inspect(resaved).problems

    assert problem.file == name
    assert problem.transient
    assert inspect(resaved, ordered=False).complete


@pytest.mark.parametrize("name", ["entropy_ctrl_state.json", "preprocessor_config.json", "README.md", "tokens.bin"])
def test_files_that_other_frameworks_write_later_do_not_mean_another_save(saved: Find, copy: Copy, name: str) -> None:
    checkpoint = copy(saved("plain"))
    (checkpoint / name).write_text("{}")
    later(checkpoint / name)

    assert inspect(checkpoint).complete


def test_the_rng_state_of_another_rank_may_be_newer_than_the_trainer_state(saved: Find, copy: Copy) -> None:
    checkpoint = copy(saved("ddp"))
    later(checkpoint / "rng_state_1.pth")

    assert inspect(checkpoint).complete


def test_weights_whose_value_head_was_split_off_later_are_complete_with_the_head(saved: Find, copy: Copy) -> None:
    checkpoint = copy(saved("plain"))
    later(checkpoint / "model.safetensors")
    half_way = inspect(checkpoint)
    (checkpoint / "value_head.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    later(checkpoint / "value_head.safetensors", 2)

    assert not half_way.complete
    assert inspect(checkpoint).complete


@pytest.mark.parametrize(
    ("ranks", "world_size", "missing"),
    [([0], None, 1), ([0, 2], None, 1), ([1, 2], None, 0), ([0, 1], 4, 2), ([0, 1], 3, 2), ([1], 2, 0)],
)
def test_a_rank_without_its_rng_state_is_named(
    saved: Find, copy: Copy, ranks: list[int], world_size: int | None, missing: int
) -> None:
    checkpoint = copy(saved("ddp"))
    content = (checkpoint / "rng_state_0.pth").read_bytes()
    for path in checkpoint.glob("rng_state_*"):
        path.unlink()
    for rank in ranks:
        (checkpoint / f"rng_state_{rank}.pth").write_bytes(content)

    found = inspect(checkpoint, world_size=world_size, ordered=False)

    assert [problem.file for problem in found.problems] == [f"rng_state_{missing}.pth"]
    assert found.problems[0].transient


def test_two_of_two_ranks_are_enough_and_one_process_is_not_two(saved: Find) -> None:
    assert inspect(saved("ddp"), world_size=2).complete
    assert not inspect(saved("plain"), world_size=2).complete
    assert inspect(saved("plain"), world_size=1).complete


@pytest.mark.parametrize("marker", [".tmpA1b2C3", "checkpoint-is-incomplete.txt", "optimizer_0/.metadata.tmp"])
def test_a_marker_of_a_running_save_is_a_transient_problem(saved: Find, copy: Copy, marker: str) -> None:
    checkpoint = copy(saved("plain"))
    (checkpoint / marker).parent.mkdir(exist_ok=True)
    (checkpoint / marker).write_bytes(b"x")

    (problem,) = inspect(checkpoint).problems

    assert problem.file == marker
    assert problem.transient


def test_a_temporary_file_of_an_earlier_save_is_a_note(saved: Find, copy: Copy) -> None:
    checkpoint = copy(saved("plain"))
    (checkpoint / ".tmpA1b2C3").write_bytes(b"x")
    later(checkpoint / ".tmpA1b2C3", -5)

    verdict = inspect(checkpoint)

    assert verdict.complete
    assert "leftover" in verdict.notes[0]


def test_shards_of_two_saves_and_shards_without_an_index_are_reported(saved: Find, copy: Copy) -> None:
    checkpoint = copy(saved("sharded"))
    shard = next(checkpoint.glob("model-00001-of-*.safetensors"))
    (checkpoint / "model-00001-of-00009.safetensors").write_bytes(shard.read_bytes())
    (checkpoint / "model.safetensors.index.json").unlink()

    found = reasons(inspect(checkpoint, ordered=False))

    assert "1 of 9 shards" in found
    assert "two different saves" in found
    assert "missing, but its shards are present" in found


def test_a_shard_with_other_tensors_than_its_index_lists_is_named(saved: Find, copy: Copy) -> None:
    checkpoint = copy(saved("sharded"))
    first, second, *_ = sorted(checkpoint.glob("model-*.safetensors"))
    first.write_bytes(
        second.read_bytes() if tensors(first) != tensors(second) else (saved("plain") / "model.safetensors").read_bytes()
    )

    assert "tensors" in reasons(inspect(checkpoint, ordered=False))


def tensors(path: Path) -> int:
    content = path.read_bytes()
    return len(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]))


def test_a_step_other_than_the_folder_name_says_is_a_permanent_problem(saved: Find, copy: Copy) -> None:
    checkpoint = copy(saved("plain"))
    renamed = checkpoint.rename(checkpoint.with_name("checkpoint-3"))

    (problem,) = inspect(renamed).problems

    assert "global_step 2 in the checkpoint of step 3" in problem.reason
    assert not problem.transient
    assert inspect(renamed, step=2).complete


def test_a_folder_of_any_name_is_checked_for_the_given_step(saved: Find, copy: Copy) -> None:
    checkpoint = copy(saved("plain"))
    download = checkpoint.rename(checkpoint.with_name("v7"))

    assert inspect(download).complete
    assert inspect(download, step=2).complete
    assert not inspect(download, step=3).complete


def test_a_file_that_the_previous_checkpoint_had_is_missing_whatever_its_step(saved: Find) -> None:
    checkpoint = saved("plain")
    before = [*(file.path for file in list_files(checkpoint)), "global_step1/extra.pt", ".tmpA1b2C3"]

    (problem,) = inspect(checkpoint, expected_names=before).problems

    assert problem.file == "global_step*/extra.pt"
    assert problem.transient


def test_distcp_newer_than_its_metadata_means_another_save(saved: Find, copy: Copy) -> None:
    checkpoint = copy(saved("fsdp-sharded"))
    shard = next(checkpoint.glob("pytorch_model_fsdp_0/*.distcp"))
    metadata = shard.with_name(".metadata")
    moment = metadata.stat().st_mtime_ns + 1
    os.utime(shard, ns=(moment, moment))

    assert "newer than its .metadata" in reasons(inspect(checkpoint))


def deepspeed_tree(folder: Path, shards: list[str], **model: object) -> Path:
    """Hand-made: DeepSpeed's names (0.19.8) around small dictionaries, for where DeepSpeed is not installed."""
    tree = folder / "global_step2"
    tree.mkdir()
    (folder / "optimizer.pt").unlink()
    (folder / "latest").write_text("global_step2")
    content = {"optimizer": None, "lr_scheduler": None, "dp_world_size": 2, "mp_world_size": 1} | model
    for name in shards:
        torch.save(content if "model_states" in name else {}, tree / name)
    return folder


ZERO_2 = ["mp_rank_00_model_states.pt", *(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2))]
ZERO_3 = [f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt" for rank in range(2) for kind in ("optim", "model")]


@pytest.mark.parametrize("shards", [ZERO_2, ZERO_3], ids=["zero-2", "zero-3"])
def test_every_shard_of_a_deepspeed_tree_is_required(saved: Find, copy: Copy, shards: list[str]) -> None:
    whole = deepspeed_tree(copy(saved("ddp")), shards)
    verdict = inspect(whole, ordered=False)

    assert verdict.problems == ()
    assert verdict.layout == "deepspeed"
    for name in shards:
        moved = (whole / "global_step2" / name).rename(whole.parent / "aside")
        assert not inspect(whole, ordered=False).complete, name
        moved.rename(whole / "global_step2" / name)


def test_without_zero_the_optimizer_is_in_the_model_shard(saved: Find, copy: Copy) -> None:
    tree = deepspeed_tree(copy(saved("ddp")), ["mp_rank_00_model_states.pt"], optimizer={"state": 1})

    assert inspect(tree, ordered=False).complete


def test_a_scheduler_that_deepspeed_made_needs_no_file(saved: Find, copy: Copy) -> None:
    tree = deepspeed_tree(copy(saved("ddp")), ZERO_2)
    (tree / "scheduler.pt").unlink()
    without = inspect(tree, ordered=False)
    torch.save({"optimizer": None, "lr_scheduler": {"step": 2}, "dp_world_size": 2}, tree / "global_step2" / ZERO_2[0])

    assert "no scheduler" in reasons(without)
    assert inspect(tree, ordered=False).complete


def test_a_missing_folder_is_reported_as_a_problem(tmp_path: Path) -> None:
    verdict = inspect(tmp_path / "checkpoint-9")

    assert [str(problem) for problem in verdict.problems] == [".: the folder is gone"]
    assert not inspect(tmp_path).complete


def test_an_unreadable_file_is_reported_as_a_problem(saved: Find, copy: Copy) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    checkpoint = copy(saved("plain"))
    (checkpoint / "optimizer.pt").chmod(0)

    assert "cannot be read by this user" in reasons(inspect(checkpoint))


def test_the_state_has_the_last_value_of_each_metric(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "loss": 3.0, "epoch": 0.1},
        {"step": 2, "loss": float("nan")},
        {"step": 2, "eval_loss": 2.5, "eval_name": "x"},
    ]
    state = {"global_step": 2, "max_steps": 2, "epoch": 0.2, "best_model_checkpoint": "/x/checkpoint-1", "log_history": rows}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))

    read = read_state(tmp_path)

    assert read.finished
    assert read.best_checkpoint == "/x/checkpoint-1"
    assert read.metrics == {"loss": 3.0, "eval_loss": 2.5}
    assert [row["step"] for row in log_history(tmp_path)] == [1, 2, 2]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"global_step": "2"}', '{"global_step": true}', "[" * 5000])
def test_a_state_that_cannot_be_read_says_why(tmp_path: Path, content: str) -> None:
    (tmp_path / "trainer_state.json").write_text(content)

    with pytest.raises(IntegrityError, match=r"trainer_state\.json: \w"):
        read_state(tmp_path)


def test_the_digest_of_the_logged_rows_is_the_one_that_earlier_versions_wrote(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"epoch": n / 7, "step": n, "loss": 1 / n, "learning_rate": n * 1e-9} for n in range(1, 2501)
    ]
    rows[3] |= {"loss": float("nan"), "note": 'sep }, { "é"\n'}
    rows[1200] |= {"nested": [{"step": 7, "x": 0.1}, {"y": {"z": None}}], "big": 10**30}
    rows[2400] = {"step": 2401, "eval_loss": 0.25, "epoch": 343.0}
    rows[2499] |= {"eval_loss": float("inf")}
    state = {"global_step": 2500, "max_steps": 5000, "log_history": rows}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state, indent=2, sort_keys=True))

    read = read_state(tmp_path)

    assert read.rows == Rows(2501, 1, "a14dea6b003c80f0")
    assert read.digest == "d763d131f0d8e285"
    assert rows_digest(tmp_path, 2501) == read.rows.digest
    assert read.metrics == {"learning_rate": 2.5e-06, "loss": 0.0004, "x": 0.1, "big": 1e30, "eval_loss": 0.25}
    assert [rows_digest(tmp_path, count) for count in (1, 1000, 2502)] == ["85f519e7ddd91672", "523583c72a13d8e4", None]


def test_a_state_that_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="No such file"):
        read_state(tmp_path)
    with pytest.raises(IntegrityError, match="No such file"):
        log_history(tmp_path)


def test_an_inspection_is_light_and_quick(saved: Find) -> None:
    checkpoint = saved("plain")
    inspect(checkpoint)

    started = time.perf_counter()
    for _ in range(20):
        inspect(checkpoint)

    assert (time.perf_counter() - started) / 20 < 0.05


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, ckptsync.layouts; print(sorted({'torch', 'transformers', 'numpy', 'zipfile', 'pickle'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("eval_predictions.json", b'{"a": 1}\n{"a": 2}\n'),
        ("notes.json", b"// written by hand\n{}"),
        ("results.json", b"{"),
        ("averages/ema.safetensors", b"of another program"),
        ("DONE.txt", b""),
        ("empty.bin", b""),
    ],
)
def test_what_a_callback_puts_into_a_checkpoint_may_hold_anything(saved: Find, copy: Copy, name: str, content: bytes) -> None:
    folder = copy(saved("plain"))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)

    verdict = inspect(folder, ordered=False, deep=True)

    assert verdict.complete, verdict.problems
    assert verdict.resumable
    assert name in {file.path for file in verdict.files}


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "added_tokens.json", "generation_config.json", "model-00001-of-00002.safetensors"]
)
def test_what_the_trainer_and_its_classes_write_is_checked(saved: Find, copy: Copy, name: str) -> None:
    folder = copy(saved("plain"))
    (folder / name).write_bytes(b"{")

    assert not inspect(folder, ordered=False).complete
