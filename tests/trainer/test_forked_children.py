"""What a training forks and starts behaves as it does without ckptsync: pools end, SIGTERM ends a child, no mask is inherited."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.trainer.trainings import Training, difference

PROGRAM = """
import multiprocessing, os, signal, subprocess, sys, time
from pathlib import Path
from ckptsync.trainer import tiny
from transformers import TrainerCallback

out, fork = sys.argv[1], multiprocessing.get_context("fork")

class At(TrainerCallback):
    def __init__(self, does, step=2):
        self.does, self.step = does, step
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.does()

def train(does, *options):
    trainer = tiny.build(tiny.parse(["--output-dir", out, "--report-to", "none", "--save-steps", "8", *options]))
    trainer.add_callback(At(does))
    trainer.train()
    trainer.save_model()
    trainer.save_state()

def ends_at_sigterm(process):
    process.start()
    process.terminate()
    process.join(20)
    code = process.exitcode
    process.kill()
    return code
"""


def program(folder: Path, text: str) -> Path:
    """A training program on disk, with what these need above it."""
    file = folder / "program.py"
    file.write_text(PROGRAM + textwrap.dedent(text))
    return file


@pytest.mark.slow
def test_a_forked_child_ends_at_terminate_at_whatever_moment_it_comes(training: Training, tmp_path: Path) -> None:
    file = program(
        tmp_path,
        """
        def many():
            codes = {ends_at_sigterm(fork.Process(target=time.sleep, args=(60,))) for _ in range(50)}
            print(codes, signal.pthread_sigmask(signal.SIG_BLOCK, ()))

        train(many, "--max-steps", "3")
        """,
    )

    out, _ = training.run(file, tmp_path / "out", follow=tmp_path / "out")

    assert out.split() == ["{-15}", "set()"]


@pytest.mark.slow
def test_a_fork_pool_in_every_step_ends_and_changes_nothing(training: Training, uninterrupted: Path, tmp_path: Path) -> None:
    file = program(
        tmp_path,
        """
        def pools():
            for _ in range(100):
                with fork.Pool(4) as pool:
                    assert pool.map(abs, range(-8, 0)) == list(range(8, 0, -1))

        train(pools, "--max-steps", "20")
        """,
    )

    training.run(file, tmp_path / "out", follow=tmp_path / "out")

    assert difference(tmp_path / "out", uninterrupted) == []


@pytest.mark.slow
def test_a_forked_child_has_the_programs_own_handler(training: Training, tmp_path: Path) -> None:
    file = program(
        tmp_path,
        """
        def own(number, frame):
            os._exit(7)

        def child():
            signal.pause()

        signal.signal(signal.SIGTERM, own)
        train(lambda: print(ends_at_sigterm(fork.Process(target=child))), "--max-steps", "3")
        """,
    )

    out, _ = training.run(file, tmp_path / "out", follow=tmp_path / "out")

    assert out.split() == ["7"]


@pytest.mark.slow
def test_what_a_data_worker_starts_ends_at_terminate(training: Training, tmp_path: Path) -> None:
    file = program(
        tmp_path,
        """
        class Decoding(list):
            def __getitem__(self, index):
                decoder = subprocess.Popen([sys.executable, "-S", "-c", "import time; print(flush=True); time.sleep(60)"],
                    stdout=subprocess.PIPE)
                decoder.stdout.read(1)
                decoder.terminate()
                try:
                    codes = [decoder.wait(20)]
                finally:
                    decoder.kill()
                if not (child := os.fork()):
                    time.sleep(20)
                    os._exit(9)
                os.kill(child, signal.SIGTERM)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                Path(sys.argv[2]).write_text(f"{codes} {signal.pthread_sigmask(signal.SIG_BLOCK, ())}")
                return super().__getitem__(index)

        samples = tiny.samples
        tiny.samples = lambda *given: Decoding(samples(*given))
        train(print, "--max-steps", "1", "--workers", "1", "--batch-size", "1")
        """,
    )

    training.run(file, tmp_path / "out", tmp_path / "codes", follow=tmp_path / "out")

    # torch's own handler in a data worker makes a child exit with 0 when its parent ends it.
    assert (tmp_path / "codes").read_text() == "[-15, 0] set()"


@pytest.mark.slow
def test_data_workers_that_persist_or_hang_end_with_their_training(training: Training, tmp_path: Path) -> None:
    file = program(
        tmp_path,
        """
        class Hanging(list):
            def __getitem__(self, index):
                if index == 63:
                    time.sleep(600)
                return super().__getitem__(index)

        from torch.utils.data import DataLoader
        def left_open():
            global loader, persistent
            loader = iter(DataLoader(Hanging(range(64)), num_workers=2, sampler=[0, 1, 63]))
            persistent = DataLoader(list(range(8)), num_workers=2, persistent_workers=True)
            print(next(loader), len(list(persistent)))

        train(left_open, "--max-steps", "3")
        """,
    )

    training.run(file, tmp_path / "out", follow=tmp_path / "out")
