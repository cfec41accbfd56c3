"""The hook in real trainings: an unmodified program goes on from the checkpoint, bit by bit."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from ckptsync.trainer import marker
from tests.trainer.trainings import TINY, Training, copy_until, difference

PROGRAM = """
import json, sys
from ckptsync.trainer import tiny
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback, TrainingArguments

def trainer(output_dir, kind=Trainer, arguments=TrainingArguments):
    options = tiny.parse(["--output-dir", output_dir, "--max-steps", "10", "--report-to", "none"])
    one = tiny.build(options)
    values = dict(output_dir=output_dir, max_steps=10, save_strategy="no", use_cpu=True, disable_tqdm=True, report_to="none")
    return kind(model=one.model, args=arguments(**values), train_dataset=one.train_dataset)

class Begin(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        self.step = state.global_step

def first_step(one, *args, **kwargs):
    begin = Begin()
    one.add_callback(begin)
    one.train(*args, **kwargs)
    return begin.step
"""


def program(folder: Path, text: str) -> Path:
    """A training program on disk, with what most of them need above it."""
    file = folder / "program.py"
    file.write_text(PROGRAM + textwrap.dedent(text))
    return file


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with checkpoint-5 and checkpoint-10 of a training of 10 steps."""
    folder = tmp_path_factory.mktemp("short")
    Training().run("-m", "ckptsync.trainer.tiny", "--max-steps", "10", "--report-to", "none", "--output-dir", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("step", [pytest.param(8, id="in the middle of an epoch"), pytest.param(16, id="between two epochs")])
def test_a_bare_train_goes_on_from_the_checkpoint_bit_by_bit(
    training: Training, uninterrupted: Path, tmp_path: Path, step: int
) -> None:
    checkpoint = copy_until(uninterrupted, tmp_path, step)

    _, said = training.run(*TINY, tmp_path, resume=checkpoint)

    assert difference(tmp_path, uninterrupted) == []
    assert "ckptsync" not in said


@pytest.mark.slow
def test_a_killed_training_goes_on_when_two_ranks_start_it_again(
    training: Training, uninterrupted_ranks: Path, tmp_path: Path
) -> None:
    training.run(*TINY, tmp_path, "--crash-at", "12", ranks=2, code=1)

    training.run(*TINY, tmp_path, ranks=2, resume=tmp_path / "checkpoint-8")

    assert difference(tmp_path, uninterrupted_ranks) == []


@pytest.mark.slow
def test_the_hook_reaches_a_training_that_accelerate_launches(training: Training, uninterrupted: Path, tmp_path: Path) -> None:
    checkpoint = copy_until(uninterrupted, tmp_path, 8)

    training.run("-m", "accelerate.commands.launch", "--cpu", *TINY, tmp_path, resume=checkpoint)

    assert difference(tmp_path, uninterrupted) == []


@pytest.mark.slow
def test_resume_from_does_the_same_without_the_hook(training: Training, uninterrupted: Path, tmp_path: Path) -> None:
    checkpoint = copy_until(uninterrupted, tmp_path, 8)

    training.run(*TINY, tmp_path, "--resume-from", checkpoint)

    assert difference(tmp_path, uninterrupted) == []


@pytest.mark.slow
def test_subclasses_are_resumed_once_and_never_another_output_folder(training: Training, short: Path, tmp_path: Path) -> None:
    checkpoint = copy_until(short, tmp_path / "out", 5)
    file = program(
        tmp_path,
        """
        class Own(Trainer):
            def train(self, *args, **kwargs):
                return super().train(*args, **kwargs)

        out, other = sys.argv[1:]
        print(json.dumps([
            first_step(trainer(other)),
            first_step(trainer(out, Own)),
            first_step(trainer(out)),
            first_step(trainer(other, Seq2SeqTrainer, Seq2SeqTrainingArguments)),
        ]))
        """,
    )

    out, said = training.run(file, tmp_path / "out", tmp_path / "other", resume=checkpoint)

    assert json.loads(out.splitlines()[-1]) == [0, 5, 0, 0]
    assert f"not resuming the Trainer of {tmp_path / 'other'}" in said


@pytest.mark.slow
def test_a_seq2seq_trainer_that_asks_for_the_last_checkpoint_gets_the_pulled_one(
    training: Training, short: Path, tmp_path: Path
) -> None:
    shutil.copytree(short, tmp_path / "out")
    file = program(
        tmp_path,
        """
        one = trainer(sys.argv[1], Seq2SeqTrainer, Seq2SeqTrainingArguments)
        print(first_step(one, True))
        """,
    )

    out, _ = training.run(file, tmp_path / "out", resume=tmp_path / "out/checkpoint-5")

    assert out.split()[-1] == "5"


@pytest.mark.slow
def test_a_path_in_its_own_folder_that_the_program_gives_itself_is_respected(
    training: Training, short: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(short, tmp_path / "out"))
    file = program(tmp_path, "print(first_step(trainer(sys.argv[1]), resume_from_checkpoint=sys.argv[2]))")

    out, said = training.run(file, own, own / "checkpoint-5", resume=own / "checkpoint-10")

    assert out.split()[-1] == "5"
    assert f"the program resumes from {own / 'checkpoint-5'} itself" in said


@pytest.mark.slow
def test_a_checkpoint_of_its_own_wins_over_the_base_checkpoint_that_the_command_names(
    training: Training, short: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(short, tmp_path / "out"))
    file = program(tmp_path, "print(first_step(trainer(sys.argv[1]), resume_from_checkpoint=sys.argv[2]))")

    out, said = training.run(file, own, short / "checkpoint-5", resume=own / "checkpoint-10")

    assert out.split()[-1] == "10"
    assert f"resuming from {own / 'checkpoint-10'}, the training's own checkpoint" in said


@pytest.mark.slow
def test_a_rank_that_torchrun_starts_again_resumes_from_the_newest_finished_checkpoint(
    training: Training, short: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(short, tmp_path / "out"))
    marker.write(own, 10, world_size=1)
    file = program(tmp_path, "print(first_step(trainer(sys.argv[1])))")

    launched, _ = training.run(file, own, resume=own / "checkpoint-5", follow=own)
    again = {"TORCHELASTIC_RESTART_COUNT": "1"}
    restarted, _ = training.run(file, own, resume=own / "checkpoint-5", follow=own, env=again)

    assert launched.split()[-1] == "5"
    assert restarted.split()[-1] == "10"


def test_a_missing_checkpoint_ends_the_training_instead_of_starting_over(training: Training, tmp_path: Path) -> None:
    _, said = training.run(*TINY, tmp_path, code=1, resume=tmp_path / "checkpoint-8")

    assert f"the checkpoint to resume from is missing: {tmp_path / 'checkpoint-8'}" in said
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.slow
def test_a_training_that_saves_in_another_folder_is_an_error_of_run_in_the_end(training: Training, tmp_path: Path) -> None:
    words = ("-m", "ckptsync", "run", "--run-id", "elsewhere", "--output-dir", tmp_path / "watched", "--", sys.executable)

    _, said = training.run(*words, *TINY, tmp_path / "mine", code=1, env={"WANDB_MODE": "offline"})

    assert f"the training saved in {tmp_path / 'mine'}, not in {tmp_path / 'watched'}" in said
    assert f"--output-dir {tmp_path / 'mine'}" in said
