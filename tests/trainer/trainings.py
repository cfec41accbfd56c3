"""Real trainings in real processes: how the tests start them, end them and compare what they leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckptsync.trainer import OUTPUT_DIR, RESUME_FROM, hook_path

TINY = ("-m", "ckptsync.trainer.tiny", "--max-steps", "20", "--save-steps", "8", "--report-to", "none", "--output-dir")
"""16 steps are an epoch: checkpoint-8 lies in the middle of one, checkpoint-16 between two, 20 is the end."""

Env = dict[str, str] | None


class Training:
    """Starts trainings without and with the hook, and ends those that a failed test left behind."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self, *arguments: str | Path, ranks: int = 1, resume: Path | None = None, follow: Path | None = None, env: Env = None
    ) -> subprocess.Popen[str]:
        """Start `python ARGUMENTS`, or torchrun with that many ranks, in a process group of its own."""
        python = [sys.executable]
        if ranks > 1:
            python += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        process = subprocess.Popen(
            [*python, *map(str, arguments)],
            env=environment(resume=resume, follow=follow, env=env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def run(self, *arguments: str | Path, code: int = 0, **options: Any) -> tuple[str, str]:
        """Run to the end, expect that exit code, return what it printed and what it said on stderr."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, err
        return out, err

    def end(self) -> None:
        """Kill what is still there."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


def environment(*, resume: Path | None = None, follow: Path | None = None, env: Env = None) -> dict[str, str]:
    """The environment of a training: nothing of wandb or ckptsync from outside, and the hook where it is needed."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "CKPTSYNC_"))}
    outside.pop("PYTHONPATH", None)
    values = {**outside, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if resume or follow:
        values["PYTHONPATH"] = str(hook_path())
    if resume:
        values[RESUME_FROM] = str(resume)
    if follow:
        values[OUTPUT_DIR] = str(follow)
    return {**values, **(env or {})}


def wait_for(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    """Return when the condition holds; fail when it doesn't in that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def losses(folder: Path) -> dict[int, float]:
    """The loss of every step, as trainer_state.json has it."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {row["step"]: row["loss"] for row in history if "loss" in row}


def difference(one: Path, other: Path) -> list[str]:
    """In what two trainings of 20 steps differ: weights byte by byte, optimizer tensor by tensor, the loss of each step."""
    import torch

    found = []
    if (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes():
        found.append("weights")
    states = [torch.load(folder / "checkpoint-20/optimizer.pt")["state"] for folder in (one, other)]
    for index, values in states[0].items():
        found += [f"optimizer {index} {name}" for name in values if not torch.equal(values[name], states[1][index][name])]
    first, second = losses(one), losses(other)
    found += [f"loss of step {step}" for step in first.keys() | second.keys() if first.get(step) != second.get(step)]
    return found


def copy_until(source: Path, target: Path, step: int) -> Path:
    """An output folder that holds only what a training had when it was lost after that checkpoint."""
    shutil.copytree(source / f"checkpoint-{step}", target / f"checkpoint-{step}")
    return target / f"checkpoint-{step}"
