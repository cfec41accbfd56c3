"""Saves checkpoints as the Trainer does, at speed: `python -m tests.soak.training OUTPUT_DIR LEDGER SEED`, until SIGTERM.

File by file, in place except for the weights, which are renamed into the folder; trainer_state.json last; then rotation.
Sometimes the same step is saved again. The ledger gets a line before each save, with the content that every file will have, and
one after it. By its seed, a training has the clock of another machine, and writes the markers of SyncCallback. One whose output
folder fails ends with the error, as a real one does.

Under `ckptsync run` it goes on from the checkpoint that it is given, and the ledger says from which; alone, from its last step.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptsync import processes, record
from ckptsync.trainer import ATTEMPT, OUTPUT_DIR, RESUME_FROM, marker
from tests import evidence
from tests.checkpoints import safetensors_bytes, torch_bytes

RUN = "soak"
MAX_STEPS = 10**9

LOGGING_STEPS = 10

SKEWS = (0.0, 0.0, -86400.0, 5.0, 3600.0)
"""Seconds by which a training's clock is ahead: each start may be on another machine."""

PAUSES = (0.0, 0.01, 0.05, 0.7)
"""Seconds between two files of a save. The last one is longer than the soak's quiet period: quiet alone proves nothing."""


@dataclass
class Ledger:
    """The training's record of what it saved. `saves` holds every save that was begun, by its content's name.

    `starts` holds, for each start under `ckptsync run`, how many saves had been begun and the files that it was given.
    """

    saves: dict[str, evidence.Digests] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    starts: list[tuple[int, evidence.Digests]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Read the ledger back, ignoring a last line that a kill truncated."""
        found = cls()
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if "given" in value:
                found.starts.append((len(found.saves), value["given"]))
            elif "files" in value:
                found.saves[value["content"]] = value["files"]
                found.folders[value["content"]] = value["folder"]
            else:
                found.done.append(value["content"])
        return found

    @property
    def last_step(self) -> int:
        """The highest step that was ever begun."""
        return max((int(name.removeprefix("checkpoint-")) for name in self.folders.values()), default=0)


class Training:
    """One process that saves."""

    def __init__(self, output_dir: Path, ledger: Path, seed: int) -> None:
        self.stopped = False
        self._output_dir = output_dir
        self._ledger = ledger
        self._random = random.Random(seed)
        self._skew = self._random.choice(SKEWS)
        self._marks = self._random.random() < 0.5
        known = Ledger.read(ledger)
        self._number = len(known.saves)
        self._attempt: int | None = None
        self._step = self._taken_up() if OUTPUT_DIR in os.environ else known.last_step

    def _taken_up(self) -> int:
        """Introduce this process as the hook does, and take the step of the checkpoint that it was given."""
        record.update(self._output_dir, processes=[processes.identity(os.getpid())], max_steps=MAX_STEPS)
        attempts = record.read(self._output_dir).attempts
        self._attempt = next((each.number for each in attempts if each.id == os.environ.get(ATTEMPT)), None)
        given = os.environ.get(RESUME_FROM)
        self._note({"given": evidence.digests(Path(given)) if given else {}})
        return int(json.loads(Path(given, "trainer_state.json").read_text())["global_step"]) if given else 0

    def run(self) -> None:
        """Save, rotate, and sometimes save again, until asked to stop."""
        while not self.stopped:
            self._step += 1
            self.save()
            self._rotate()
            if self._random.random() < 0.2:
                time.sleep(self._random.uniform(0.02, 1.0))
                self.save()
            time.sleep(self._random.uniform(0.05, 1.5))

    def save(self) -> None:
        """Write one checkpoint."""
        self._number += 1
        content = f"save {self._number}"
        folder = self._output_dir / f"checkpoint-{self._step}"
        files = self._files(content)
        digests = {name: evidence.digest(value) for name, value in files.items()}
        self._note({"content": content, "folder": folder.name, "files": digests})
        folder.mkdir(exist_ok=True)
        for name, value in files.items():
            if name.endswith(".safetensors"):
                temporary = folder / f".tmp{self._number:06d}"
                temporary.write_bytes(value)
                temporary.rename(folder / name)
            else:
                (folder / name).write_bytes(value)
            self._stamp(folder / name)
            time.sleep(self._random.choices(PAUSES, (60, 25, 10, 5))[0])
        if self._marks:
            run_id = RUN if self._attempt else None
            marker.write(self._output_dir, self._step, world_size=1, run_id=run_id, attempt=self._attempt)
        self._note({"content": content})

    def _stamp(self, path: Path) -> None:
        """Give a file the time of this training's own clock."""
        if self._skew:
            now = time.time_ns() + int(self._skew * 1e9)
            os.utime(path, ns=(now, now))

    def _files(self, content: str) -> dict[str, bytes]:
        size = self._random.choice((1000, 30_000, 400_000))
        return {
            "config.json": json.dumps({"model_type": "llama"}).encode(),
            "model.safetensors": safetensors_bytes(content, size),
            "training_args.bin": torch_bytes({"output_dir": str(self._output_dir)}),
            "optimizer.pt": torch_bytes({"seed": content}, size),
            "scheduler.pt": torch_bytes({"last_epoch": self._step}),
            "rng_state.pth": torch_bytes({"seed": content}),
            "trainer_state.json": self._state(),
        }

    def _state(self) -> bytes:
        """The rows are those of the steps before, and one more now and then: it is one training, however often it starts."""
        rows = [{"step": step, "loss": 1 / step} for step in range(1, self._step + 1, LOGGING_STEPS)]
        state = {"best_model_checkpoint": None, "epoch": 0.1, "global_step": self._step, "max_steps": MAX_STEPS}
        return json.dumps(state | {"log_history": rows}).encode()

    def _rotate(self) -> None:
        kept = self._random.randint(1, 3)
        folders = sorted(self._output_dir.glob("checkpoint-*"), key=lambda each: int(each.name.removeprefix("checkpoint-")))
        for folder in folders[:-kept]:
            shutil.rmtree(folder, ignore_errors=True)

    def _note(self, line: dict[str, Any]) -> None:
        with self._ledger.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> int:
    """Save until SIGTERM; the current save is finished."""
    training = Training(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))

    def stop(_number: int, _frame: object) -> None:
        training.stopped = True

    signal.signal(signal.SIGTERM, stop)
    training.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
