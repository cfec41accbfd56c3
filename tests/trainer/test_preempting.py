"""SyncCallback in real trainings: what it leaves for the watcher, and what it does at a signal."""

from __future__ import annotations

import json
import os
import signal
import textwrap
from pathlib import Path
from typing import Any

import pytest
import transformers

from ckptsync.checkpoint import fingerprint
from ckptsync.layouts import list_files
from ckptsync.trainer.preemption_signals import Signals
from tests.trainer.trainings import TINY, Training, difference, wait_for

PROGRAM = """
import os, signal, sys
from ckptsync.trainer import tiny
from transformers import TrainerCallback

class SignalAt(TrainerCallback):
    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)

def build(*options):
    return tiny.build(tiny.parse(["--output-dir", sys.argv[1], "--report-to", "none", *options]))
"""


def program(folder: Path, text: str) -> Path:
    """A training program on disk, with what most of them need above it."""
    file = folder / "program.py"
    file.write_text(PROGRAM + textwrap.dedent(text))
    return file


def markers(output_dir: Path) -> dict[str, Any]:
    """The completion markers of an output folder, by checkpoint."""
    folder = output_dir / ".ckptsync/complete"
    return {entry.name: json.loads(entry.read_text()) for entry in sorted(folder.iterdir())}


def run_json(output_dir: Path) -> Any:
    """What run.json says."""
    return json.loads((output_dir / ".ckptsync/run.json").read_text())


def steps(output_dir: Path) -> list[int]:
    """The steps that have a checkpoint."""
    return sorted(int(folder.name.split("-")[1]) for folder in output_dir.glob("checkpoint-*"))


def test_sigterm_saves_and_leaves_with_75_and_the_rest_is_bit_identical(
    training: Training, uninterrupted: Path, tmp_path: Path
) -> None:
    process = training.start(*TINY, tmp_path, "--step-seconds", "0.2", follow=tmp_path)
    wait_for((tmp_path / ".ckptsync/complete/checkpoint-8").exists)

    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 75, said
    last = steps(tmp_path)[-1]
    assert 8 < last < 16
    assert [name for name, marker in markers(tmp_path).items() if marker["preempted"]] == [f"checkpoint-{last}"]
    assert not (tmp_path / "model.safetensors").exists()
    training.run(*TINY, tmp_path, resume=tmp_path / f"checkpoint-{last}", follow=tmp_path)
    assert difference(tmp_path, uninterrupted) == []


@pytest.mark.slow
def test_a_signal_to_one_rank_makes_all_ranks_save_the_same_step(
    training: Training, uninterrupted_ranks: Path, tmp_path: Path
) -> None:
    process = training.start(*TINY, tmp_path, "--step-seconds", "0.2", ranks=2, follow=tmp_path)
    wait_for((tmp_path / ".ckptsync/complete/checkpoint-8").exists)

    os.kill(run_json(tmp_path)["processes"][1]["pid"], signal.SIGUSR1)
    _, said = process.communicate(timeout=60)

    assert said.count("exitcode  : 75") >= 1, said
    last = steps(tmp_path)[-1]
    assert 8 < last < 16
    assert markers(tmp_path)[f"checkpoint-{last}"] | {"saved_at": 0, "print": ""} == {
        "version": 1,
        "step": last,
        "saved_at": 0,
        "world_size": 2,
        "print": "",
        "preempted": True,
        "run": None,
        "attempt": 1,
    }
    training.run(*TINY, tmp_path, ranks=2, resume=tmp_path / f"checkpoint-{last}")
    assert difference(tmp_path, uninterrupted_ranks) == []


@pytest.mark.slow
def test_a_signal_to_the_whole_group_leaves_the_data_workers_alive_until_the_save_is_done(
    training: Training, tmp_path: Path
) -> None:
    process = training.start(*TINY, tmp_path, "--step-seconds", "0.2", "--workers", "2", follow=tmp_path)
    wait_for((tmp_path / ".ckptsync/complete/checkpoint-8").exists)

    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 75, said
    assert 8 < steps(tmp_path)[-1] < 16
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.slow
def test_a_handler_of_the_program_is_called_after_the_save(training: Training, tmp_path: Path) -> None:
    file = program(
        tmp_path,
        """
        def handler(number, frame):
            print("handler", number, sorted(os.listdir(sys.argv[1])))
            sys.exit(3)

        signal.signal(signal.SIGUSR1, handler)
        trainer = build("--max-steps", "6")
        trainer.add_callback(SignalAt(3, signal.SIGUSR1))
        trainer.train()
        print("went on")
        """,
    )

    out, _ = training.run(file, tmp_path / "out", code=75, follow=tmp_path / "out")

    assert out.splitlines() == [f"handler {signal.SIGUSR1.value} ['.ckptsync', 'checkpoint-3']"]


@pytest.mark.slow
def test_a_signal_in_the_last_step_does_not_keep_a_training_from_finishing(training: Training, tmp_path: Path) -> None:
    file = program(
        tmp_path,
        """
        trainer = build("--max-steps", "6")
        trainer.add_callback(SignalAt(6))
        trainer.train()
        print(trainer.state.global_step, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        """,
    )

    out, _ = training.run(file, tmp_path / "out", follow=tmp_path / "out")

    assert out.split() == ["6", "True"]
    assert not markers(tmp_path / "out")["checkpoint-6"]["preempted"]


@pytest.mark.slow
def test_the_markers_are_those_of_the_files_that_are_there(training: Training, tmp_path: Path) -> None:
    training.run(*TINY, tmp_path, "--save-steps", "4", "--save-total-limit", "2", follow=tmp_path)

    found = {name: marker["print"] for name, marker in markers(tmp_path).items()}

    assert found == {folder.name: fingerprint(list_files(folder)) for folder in tmp_path.glob("checkpoint-*")}
    assert sorted(found) == ["checkpoint-16", "checkpoint-20"]


@pytest.mark.slow
def test_the_callback_works_in_the_users_own_code_and_keeps_secrets_and_the_command(training: Training, tmp_path: Path) -> None:
    (tmp_path / "out/.ckptsync").mkdir(parents=True)
    (tmp_path / "out/.ckptsync/run.json").write_text('{"version": 1, "command": ["train"], "later": {"key": 1}}')
    file = program(
        tmp_path,
        """
        from ckptsync.trainer.callback import SyncCallback
        trainer = build("--max-steps", "6")
        trainer.add_callback(SyncCallback())
        trainer.add_callback(SignalAt(3))
        trainer.train()
        """,
    )

    env = {"WANDB_RUN_ID": "abc", "WANDB_PROJECT": "p", "WANDB_ENTITY": "e"}

    training.run(file, tmp_path / "out", "--api-key=hidden", code=75, env=env)

    recorded = run_json(tmp_path / "out")
    assert recorded.pop("processes")[0].keys() == {"host", "pid_namespace", "time_namespace", "pid", "born"}
    assert [attempt["resumed_step"] for attempt in recorded.pop("attempts")] == [None]
    assert recorded.pop("acknowledged") == {"attempt": 1, "step": 0}
    assert recorded == {
        "version": 1,
        "command": ["train"],
        "later": {"key": 1},
        "world_size": 1,
        "max_steps": 6,
        "run_id": "abc",
        "project": "p",
        "entity": "e",
    }
    assert steps(tmp_path / "out") == [3]


@pytest.mark.slow
def test_a_training_that_raised_leaves_no_handler_behind_though_the_callback_was_added_by_hand(
    training: Training, tmp_path: Path
) -> None:
    file = program(
        tmp_path,
        """
        from ckptsync.trainer.callback import SyncCallback
        class Fail(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                raise ValueError("no data")
        trainer = build("--max-steps", "6")
        trainer.add_callback(SyncCallback())
        trainer.add_callback(Fail())
        try:
            trainer.train()
        except ValueError:
            os.kill(os.getpid(), signal.SIGTERM)
        print("still here")
        """,
    )

    training.run(file, tmp_path / "out", code=-signal.SIGTERM)


SFT = """
import random, sys, time
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

set_seed(1)
words = ["<eos>", "<unk>", *(f"w{index}" for index in range(60))]
model = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
model.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")

def texts():
    generator = random.Random(1)
    return [" ".join(generator.choices(words[2:], k=16)) for _ in range(64)]

def slow(batch):
    time.sleep(float(sys.argv[2]))
    return collate(batch)

config = GPT2Config(vocab_size=62, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
args = SFTConfig(sys.argv[1], max_steps=20, save_steps=8, logging_steps=1, use_cpu=True, bf16=False, report_to="none")
dataset = Dataset.from_dict({"text": texts()})
trainer = SFTTrainer(model=GPT2LMHeadModel(config), args=args, train_dataset=dataset, processing_class=tokenizer)
collate, trainer.data_collator = trainer.data_collator, slow
trainer.train()
trainer.save_model()
trainer.save_state()
"""


@pytest.mark.slow
def test_a_trl_script_with_a_bare_train_is_preempted_and_goes_on_bit_by_bit(training: Training, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    script, output, reference = tmp_path / "sft.py", tmp_path / "out", tmp_path / "reference"
    script.write_text(SFT)
    training.run(script, reference, "0")
    process = training.start(script, output, "0.2", follow=output)
    wait_for((output / ".ckptsync/complete/checkpoint-8").exists)

    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 75, said
    last = steps(output)[-1]
    assert 8 < last < 16
    training.run(script, output, "0", resume=output / f"checkpoint-{last}", follow=output)
    assert difference(output, reference) == []


@pytest.mark.slow
@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4.57 has no just-in-time checkpoint")
def test_transformers_own_just_in_time_checkpoint_keeps_sigterm_and_is_marked(training: Training, tmp_path: Path) -> None:
    file = program(
        tmp_path,
        """
        import dataclasses
        from transformers import Trainer
        one = build("--max-steps", "200", "--step-seconds", "0.1")
        one.args.enable_jit_checkpoint = True
        trainer = Trainer(model=one.model, args=one.args, train_dataset=one.train_dataset, callbacks=[SignalAt(3)])
        trainer.add_callback(tiny._pace(0.1, 0))
        trainer.train()
        """,
    )

    training.run(file, tmp_path / "out", follow=tmp_path / "out")

    last = f"checkpoint-{steps(tmp_path / 'out')[-1]}"
    assert last != "checkpoint-3"
    assert markers(tmp_path / "out")[last]["preempted"]
    assert markers(tmp_path / "out")[last]["print"] == fingerprint(list_files(tmp_path / "out" / last))


def test_signals_are_noted_handed_over_once_and_released() -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: calls.append(number))
    signals = Signals()

    signals.install({signal.SIGUSR1})
    os.kill(os.getpid(), signal.SIGUSR1)
    noted, called_at_once = signals.received, list(calls)
    signals.hand_over()
    signals.hand_over()
    signals.release()
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)

    assert (noted, called_at_once) == (signal.SIGUSR1, [])
    assert calls == [signal.SIGUSR1, signal.SIGUSR1]
