"""The final model: which folder, which files, and what the variables of W&B ask for."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ckptsync import config, layouts
from ckptsync.checkpoint import File, Run, Snapshot
from ckptsync.errors import NotFoundError
from ckptsync.layouts import final_model
from ckptsync.store import artifact
from ckptsync.upload.spool import Spool
from tests.checkpoints import checkpoint_at, make_checkpoint


class TrainingArguments:
    """Stands for the Trainer's: what counts is how its state is pickled."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def write_arguments(folder: Path, **values: Any) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("training_args/data.pkl", pickle.dumps(TrainingArguments(**values), protocol=2))
        archive.writestr("training_args/version", "3\n")
    (folder / "training_args.bin").write_bytes(buffer.getvalue())
    # The state is written last.
    state = folder / "trainer_state.json"
    state.write_bytes(state.read_bytes())


def pinned(output_dir: Path, step: int, *, load_best: bool | None, **given: Any) -> Snapshot:
    folder = make_checkpoint(output_dir, step, **given)
    if load_best is not None:
        write_arguments(folder, output_dir=str(output_dir), load_best_model_at_end=load_best)
    spool = Spool(output_dir)
    spool.prepare()
    return spool.pin(checkpoint_at(folder))


@pytest.mark.parametrize("value", [True, False])
def test_training_args_say_whether_the_best_model_is_loaded_at_the_end(tmp_path: Path, value: bool) -> None:
    folder = make_checkpoint(tmp_path, 4)
    write_arguments(folder, load_best_model_at_end=value)

    assert layouts.loads_best(folder) is value


def test_missing_or_truncated_training_args_say_nothing(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 4)
    unknown = layouts.loads_best(folder)
    (folder / "training_args.bin").write_bytes(b"PK\x03\x04 torn")
    torn = layouts.loads_best(folder)
    (folder / "training_args.bin").unlink()

    assert (unknown, torn, layouts.loads_best(folder)) == (None, None, None)


def test_the_final_model_is_that_of_the_last_checkpoint_without_what_only_a_training_needs(tmp_path: Path) -> None:
    found = final_model.find(pinned(tmp_path, 10, load_best=False, max_steps=10), tmp_path)

    assert [file.path for file in found.files] == ["config.json", "model.safetensors"]
    assert (found.step, found.best) == (10, False)


@pytest.mark.parametrize("load_best", [True, None], ids=["says-so", "does-not-tell"])
def test_with_a_best_checkpoint_the_final_model_is_the_best_one(tmp_path: Path, load_best: bool | None) -> None:
    make_checkpoint(tmp_path, 5)

    found = final_model.find(
        pinned(tmp_path, 10, load_best=load_best, max_steps=10, best="/elsewhere/out/checkpoint-5"), tmp_path
    )

    assert (found.folder, found.step, found.best) == (tmp_path / "checkpoint-5", 5, True)


def test_a_best_checkpoint_counts_for_nothing_where_the_training_does_not_load_it(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5)

    found = final_model.find(pinned(tmp_path, 10, load_best=False, max_steps=10, best=str(tmp_path / "checkpoint-5")), tmp_path)

    assert (found.step, found.best) == (10, False)


def test_a_missing_best_checkpoint_is_named(tmp_path: Path) -> None:
    last = pinned(tmp_path, 10, load_best=True, max_steps=10, best=str(tmp_path / "checkpoint-5"))

    with pytest.raises(NotFoundError, match="checkpoint-5"):
        final_model.find(last, tmp_path)


def test_shards_of_deepspeed_and_fsdp_make_no_model() -> None:
    deepspeed = ["global_step5/mp_rank_00_model_states.pt", "latest", "config.json"]
    fsdp = ["pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata", "config.json"]

    for names in (deepspeed, fsdp, ["pytorch_model_fsdp.bin", "config.json"]):
        assert layouts.model_files([File(name, 1, 1) for name in names]) == ()


def test_adapters_shards_tokenizers_and_processors_belong_to_the_model() -> None:
    names = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "preprocessor_config.json",
        "tokenizer.json",
    ]
    training = ["optimizer.pt", "rng_state_1.pth", "scaler.pt", "scheduler.pt", "trainer_state.json", "training_args.bin"]

    found = layouts.model_files([File(name, 1, 1) for name in [*names, *training]])

    assert [file.path for file in found] == names


def test_nothing_can_be_resumed_from_a_final_model_and_its_metadata_says_so(tmp_path: Path) -> None:
    found = final_model.find(pinned(tmp_path, 10, load_best=False, max_steps=10), tmp_path)

    upload = artifact.describe_model(found, Run("abc", "p", "me"), stem="abc")

    assert upload.name == "model-abc"
    assert upload.aliases == ("final", "step-10")
    assert upload.metadata["ckptsync"]["resumable"] is False
    assert upload.metadata["ckptsync"]["kind"] == "model"


@pytest.mark.parametrize(
    ("environ", "mode"),
    [
        ({}, "online"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled"),
        ({"WANDB_DISABLED": "false"}, "online"),
    ],
    ids=str,
)
def test_wandb_mode_and_disabled_say_whether_anything_is_uploaded(environ: dict[str, str], mode: str) -> None:
    assert config.upload_mode(environ) == mode


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("", None), ("checkpoint", "checkpoint"), ("END", "end"), ("false", "false"), ("true", "false")],
)
def test_wandb_log_model_is_read_as_the_trainer_reads_it(value: str, wanted: str | None) -> None:
    assert config.log_model({"WANDB_LOG_MODEL": value}) == wanted
