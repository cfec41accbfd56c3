"""Tables of predictions for the three kinds of models, in real trainings; wandb logs them offline, and the files are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Tool
from tests.workflow.conftest import python

SCRIPT = """
import sys, torch, wandb
from transformers import (BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel, Seq2SeqTrainer,
    Seq2SeqTrainingArguments, Trainer, TrainingArguments, set_seed)
from ckptsync import PredictionTableCallback
from tests.workflow.program import WORDS, tokenizer
import random

kind, out, steps, resume = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
tokens = tokenizer()
generator = random.Random(1)


def sample():
    ids = torch.tensor(tokens(" ".join(generator.choices(WORDS, k=6)))["input_ids"])
    labels = ids.clone()
    if kind == "causal":
        labels[0] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


samples = [sample() for _ in range(8)]
set_seed(3)
given = dict(output_dir=out, max_steps=steps, per_device_train_batch_size=4, logging_steps=1, save_steps=2, eval_strategy="steps",
    eval_steps=2, use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True, report_to="wandb", seed=3, learning_rate=5e-2,
    lr_scheduler_type="constant")
if kind == "causal":
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=8, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))
    trainer = Trainer(model=model, args=TrainingArguments(**given), train_dataset=samples, eval_dataset=samples)
else:
    model = BartForConditionalGeneration(BartConfig(vocab_size=8, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=1))
    arguments = Seq2SeqTrainingArguments(predict_with_generate=kind == "generate", generation_max_length=8, **given)
    trainer = Seq2SeqTrainer(model=model, args=arguments, train_dataset=samples, eval_dataset=samples)
trainer.add_callback(PredictionTableCallback(trainer, tokens, samples, num_samples=3, every_epochs=2))
trainer.train(resume_from_checkpoint=resume[0] if resume else None)
wandb.finish()
"""


def train(tool: Tool, *words: str) -> list[dict[str, Any]]:
    """The tables that a training logged, in their order."""
    before = set(tool.home.glob("wandb/offline-run-*"))
    script = tool.home / "train.py"
    script.write_text(SCRIPT)
    arguments = ["train.py", *words]
    python(
        tool,
        f"import runpy, sys; sys.argv = {arguments!r}; runpy.run_path('train.py', run_name='__main__')",
        WANDB_MODE="offline",
    )
    [run] = set(tool.home.glob("wandb/offline-run-*")) - before
    tables = [json.loads(path.read_text()) for path in run.glob("files/media/table/ckptsync/*.json")]
    return sorted(tables, key=lambda table: int(table["data"][0][1]))


@pytest.fixture
def alone(tmp_path: Path) -> Tool:
    """The environment of a program, with no server."""
    return Tool(tmp_path / "home")


@pytest.mark.slow
def test_a_causal_model_is_shown_with_each_prediction_beside_its_label(alone: Tool, tmp_path: Path) -> None:
    tables = train(alone, "causal", str(tmp_path / "out"), "80")

    assert [table["data"][0][0] for table in tables] == [float(epoch) for epoch in range(2, 42, 2)]
    assert all(len(table["data"]) == 3 for table in tables)
    for _, step, text, prediction, label in tables[-1]["data"]:
        assert step == 80
        assert text.split()[1:] == label.split()
        assert len(prediction.split()) == len(label.split())
    # What it has seen so often it knows for the most part: so the places agree.
    pairs = [(a, b) for row in tables[-1]["data"] for a, b in zip(row[3].split(), row[4].split(), strict=True)]
    assert sum(a == b for a, b in pairs) > len(pairs) / 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generate", "teacher"])
def test_a_sequence_to_sequence_model_is_shown_generated_or_token_by_token(alone: Tool, tmp_path: Path, kind: str) -> None:
    tables = train(alone, kind, str(tmp_path / "out"), "4")

    assert [len(table["data"]) for table in tables] == [3]
    assert {row[2] for row in tables[0]["data"]} == {row[4] for row in tables[0]["data"]}


@pytest.mark.slow
def test_the_tables_go_on_after_a_resume_as_if_there_had_been_none(alone: Tool, tmp_path: Path) -> None:
    whole = train(alone, "causal", str(tmp_path / "whole"), "8")
    first = train(alone, "causal", str(tmp_path / "out"), "4")

    second = train(alone, "causal", str(tmp_path / "out"), "8", str(tmp_path / "out" / "checkpoint-4"))

    assert [table["data"][0][0] for table in first + second] == [table["data"][0][0] for table in whole] == [2.0, 4.0]
    assert (first + second)[-1]["data"] == whole[-1]["data"]
