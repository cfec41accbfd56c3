"""Real trainings, preempted by every kind of notice and by kill -9, and started again by the same line: nothing shows of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptsync.job.training import ranks
from ckptsync.rehearsal import comparison
from tests.integration.conftest import TRAINING, kill_tree, wait_for
from tests.preemption.conftest import HERE, Job, Notifier

STEPS, SAVE = 16, 4

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

CLM_OPTIONS = (
    f"--do_train --max_steps {STEPS} --save_steps {SAVE} --logging_steps 1 --per_device_train_batch_size 4 --learning_rate 1e-3"
    " --use_cpu --disable_tqdm true --seed 42 --report_to wandb --save_total_limit 2"
)


def bare(output_dir: Path) -> list[str]:
    """A program that calls bare `trainer.train()`."""
    return [*TRAINING, "--output-dir", str(output_dir), *f"--max-steps {STEPS} --save-steps {SAVE} --step-seconds 0.4".split()]


def torchrun(output_dir: Path) -> list[str]:
    """The same in two ranks."""
    return [*TORCHRUN, *bare(output_dir)[1:]]


def run_clm(output_dir: Path) -> list[str]:
    """A script in the style of run_clm.py."""
    return [sys.executable, str(HERE / "clm.py"), "--output_dir", str(output_dir), *CLM_OPTIONS.split()]


def accelerate(output_dir: Path) -> list[str]:
    """The bare program behind accelerate's launcher, which passes no signal on."""
    return [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", *bare(output_dir)[1:]]


@pytest.fixture
def notifier(request: pytest.FixtureRequest, job: Job) -> Iterator[Notifier]:
    """The notice that the test's parameter names."""
    one = Notifier(request.param, job)
    yield one
    one.close()


CASES: list[tuple[str, Callable[[Path], list[str]]]] = [
    ("gce", bare),
    ("SIGUSR1", torchrun),
    ("aws", torchrun),
    ("azure", run_clm),
    ("SIGTERM", run_clm),
    ("SIGUSR1", bare),
    ("SIGTERM", accelerate),
]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("notifier", "program"), CASES, indirect=["notifier"], ids=[f"{notice} {program.__name__}" for notice, program in CASES]
)
def test_a_preempted_training_goes_on_by_the_same_line_and_nothing_shows_of_it(
    job: Job, notifier: Notifier, program: Callable[[Path], list[str]]
) -> None:
    job.command = program(job.output_dir)
    job.variables |= {"CLM_SECONDS": "0.4"}
    process = job.start()
    wait_for((job.output_dir / f".ckptsync/complete/checkpoint-{SAVE}").exists, seconds=120, what="the first checkpoint")

    notifier.give(process)
    code = process.wait(120)

    assert code == 75, job.said
    newest = job.versions()[0]
    assert SAVE <= newest["step"] < STEPS
    assert "preempted" in newest["aliases"]
    assert not list(job.output_dir.glob("*.safetensors"))
    notifier.take_back()
    assert job.run(CLM_SECONDS="0", timeout=180) == 0, job.said
    assert_nothing_shows(job, program)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", ["trainer", "ckptsync", "both"])
def test_after_kill_9_the_same_line_brings_the_training_back(job: Job, victim: str) -> None:
    job.command = bare(job.output_dir)
    process = job.start()
    wait_for(lambda: job.durable() >= SAVE, seconds=120, what="a durable checkpoint")
    durable = job.durable()

    if victim == "trainer":
        os.kill(ranks(job.output_dir)[0], signal.SIGKILL)
    elif victim == "ckptsync":
        os.kill(process.pid, signal.SIGKILL)
    else:
        kill_tree(process.pid)
    code = process.wait(60)

    assert code == (137 if victim == "trainer" else -9), job.said
    assert job.run(timeout=180) == 0, job.said
    assert_nothing_shows(job, bare, repeated_from=durable + 1)


def assert_nothing_shows(job: Job, program: Callable[[Path], list[str]], *, repeated_from: int | None = None) -> None:
    """The result is that of a training that nobody touched, and the run's history is whole."""
    reference = job.output_dir.with_name("reference")
    subprocess.run(
        program(reference),
        env=job.tool.environment | {"WANDB_MODE": "disabled"},
        cwd=job.tool.home,
        check=True,
        timeout=120,
        capture_output=True,
    )
    last = f"checkpoint-{STEPS}"
    assert [each for each in comparison.compare(job.output_dir / last, reference / last) if not each.equal] == []
    assert (job.output_dir / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
    steps, runs, state = job.history()
    assert runs == ["job"]
    assert state == "finished"
    once = {step for step, times in steps.items() if times == 1}
    assert set(steps) == set(range(1, STEPS + 1)), steps
    assert set(range(1, repeated_from or STEPS + 1)) <= once, steps
    versions = job.versions()
    assert versions[0]["step"] == STEPS
    assert {"final", "latest"} <= set(versions[0]["aliases"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_training_that_ignores_its_checkpoint_is_caught_by_the_guard(job: Job) -> None:
    job.command = bare(job.output_dir)
    process = job.start()
    wait_for(lambda: job.durable() >= 2 * SAVE, seconds=120, what="a durable checkpoint")
    kill_tree(process.pid)
    process.wait(30)
    durable = job.durable()
    job.options.append("--no-hook")

    code = job.run(timeout=180)

    assert code == 5, job.said
    assert "so the training started over; nothing of it is uploaded" in job.said
    assert job.versions()[0]["step"] == durable
    assert "latest" in job.versions()[0]["aliases"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_unmodified_trl_sft_script_is_preempted_and_goes_on(job: Job, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    model, data = _tiny_model(tmp_path / "model"), _texts(tmp_path / "data")
    options = "--max_steps 400 --save_steps 40 --logging_steps 20 --per_device_train_batch_size 2 --seed 1 --max_length 64"
    options += " --use_cpu --bf16 false --disable_tqdm true --report_to wandb --save_total_limit 3 --dataset_train_split train"

    def sft(output_dir: Path) -> list[str]:
        words = ["--model_name_or_path", str(model), "--dataset_name", str(data), "--output_dir", str(output_dir)]
        return [sys.executable, "-m", "trl.scripts.sft", *words, *options.split()]

    job.command = sft(job.output_dir)
    process = job.start()
    wait_for((job.output_dir / ".ckptsync/complete/checkpoint-40").exists, seconds=120, what="the first checkpoint")

    process.send_signal(signal.SIGTERM)
    code = process.wait(120)

    assert code == 75, job.said
    left = job.versions()[0]
    assert 40 <= left["step"] < 400
    assert "preempted" in left["aliases"]
    assert job.run(timeout=240) == 0, job.said
    reference = tmp_path / "reference"
    environment = job.tool.environment | {"WANDB_MODE": "disabled"}
    subprocess.run(sft(reference), env=environment, cwd=job.tool.home, check=True, timeout=240, capture_output=True)
    found = comparison.compare(job.output_dir / "checkpoint-400", reference / "checkpoint-400")
    assert [each for each in found if not each.equal and each.part != "losses"] == []
    steps, runs, state = job.history()
    assert (runs, state) == (["job"], "finished")
    assert Counter({step: steps[step] for step in range(20, 401, 20)}) == Counter(range(20, 401, 20))


def _tiny_model(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

    set_seed(1)
    words = ["<eos>", "<unk>", *(f"w{index}" for index in range(60))]
    tokens = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>", model_max_length=64
    ).save_pretrained(folder)
    config = GPT2Config(vocab_size=62, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def _texts(folder: Path) -> Path:
    folder.mkdir()
    generator = random.Random(1)
    rows = [json.dumps({"text": " ".join(f"w{generator.randrange(60)}" for _ in range(24))}) for _ in range(256)]
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    return folder
