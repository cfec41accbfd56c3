"""A simulated machine on which `drill` and `demo` run a training, kill it and resume it.

Starts the `ckptsync` command as a user does, so that the rehearsal is the real thing. Touches no folder or run of the user's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptsync import durable, layouts, processes, record
from ckptsync.checkpoint import Receipt, fingerprint, step_of
from ckptsync.errors import CkptsyncError
from ckptsync.upload.spool import Spool

POLL = 0.05
"""Seconds between two checks of a training's progress."""

QUIET = 3.0
"""The quiet period: seconds without a change after which a checkpoint without a completion marker counts as saved."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One simulated machine: an output folder, and the log of what runs on it."""

    output_dir: Path
    log: Path

    @property
    def last_line(self) -> str:
        """The last line of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return text.strip().rpartition("\n")[2]

    def receipts(self) -> list[Receipt]:
        """The receipts of its uploads, in the order of saving."""
        return sorted(Spool(self.output_dir).receipts, key=lambda each: each.sequence)

    @contextlib.contextmanager
    def running(self, command: Sequence[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """Run a process while the block runs, with its output in the log. Nothing of it outlives the block."""
        with self.log.open("ab") as output:
            process = subprocess.Popen(list(command), env=dict(environ), stdout=output, stderr=subprocess.STDOUT)
            try:
                yield process
            finally:
                self.kill(process)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Lose the machine: SIGKILL to ckptsync, to the trainer, and to every process that they started."""
        known = record.read(self.output_dir).values
        named = [known.get("training"), *(known.get("processes") or [])]
        pids = [pid for pid in map(processes.living, named) if pid is not None]
        if process.poll() is None:
            pids = [process.pid, *processes.descendants(process.pid), *pids]
        pids += [child for pid in pids for child in processes.descendants(pid)]
        for pid in dict.fromkeys(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def wait_for(self, what: str, answer: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> None:
        """Return when `answer` is true. Raises CkptsyncError if the process ends first, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while not answer():
            if process.poll() is not None and not answer():
                raise CkptsyncError(
                    f"{what} was not reached: the command ended with {process.returncode}: {self.last_line}",
                    hint=f"Run again with --keep FOLDER and read {self.log.name}.",
                )
            if time.monotonic() > deadline:
                hint = "Save more often, or raise --patience."
                raise CkptsyncError(f"{what} was not reached in {seconds:.0f} s", hint=hint)
            time.sleep(POLL)

    def saved(self, step: int) -> Saved:
        """A check whether the checkpoint of a step is complete, to be called repeatedly."""
        return Saved(self.output_dir, step)

    def newest(self) -> Path:
        """Its complete checkpoint with the highest step. Raises CkptsyncError if there is none."""
        complete = [
            path for path in self.output_dir.glob("checkpoint-*") if step_of(path.name) and layouts.inspect(path).complete
        ]
        if not complete:
            raise CkptsyncError(f"no complete checkpoint was saved: {self.last_line}", hint="Run again with --keep FOLDER.")
        return max(complete, key=lambda path: step_of(path.name) or 0)


class Saved:
    """Whether a checkpoint is complete: by its completion marker, or after a quiet period if it has none."""

    def __init__(self, output_dir: Path, step: int) -> None:
        self._path = output_dir / f"checkpoint-{step}"
        self._marker = Spool(output_dir).markers.folder / self._path.name
        self._seen, self._since = "", 0.0

    def __call__(self) -> bool:
        try:
            found = fingerprint(layouts.list_files(self._path))
        except OSError:
            return False
        if found != self._seen:
            self._seen, self._since = found, time.monotonic()
        if (durable.read_json(self._marker) or {}).get("print") == found:
            return True
        return time.monotonic() - self._since > QUIET and layouts.inspect(self._path).complete


def ckptsync(verb: str, *words: str | Path) -> list[str]:
    """The command `ckptsync VERB …` of this installation."""
    return [sys.executable, "-m", "ckptsync", verb, *map(str, words)]
