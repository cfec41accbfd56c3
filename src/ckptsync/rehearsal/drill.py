"""A rehearsal of the worst: a training in folders of its own is killed in the middle and brought back. For `drill` and `demo`.

Starts `ckptsync` itself, as a user does, so that what is rehearsed is what will happen. Touches no folder and run of the user's.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptsync import durable, layouts, processes, record
from ckptsync.checkpoint import Receipt, fingerprint, step_of
from ckptsync.errors import CkptsyncError, UsageError
from ckptsync.upload.spool import Spool

PLACEHOLDER = "{output_dir}"

POLL = 0.05
"""Seconds between two looks at what a rehearsed training has done."""

QUIET = 3.0
"""Seconds without a change after which a checkpoint counts as saved where no callback says so."""

_OPTION = re.compile(r"--?output[-_]dir")
_OUTWARD = re.compile(r"--push[-_]to[-_]hub(?:=(?!false|no|0).*)?", re.IGNORECASE)


def redirect(command: Sequence[str], folder: Path) -> list[str]:
    """The command with `folder` in the place of its output folder, wherever that stands in it.

    That is `{output_dir}`, or the value of --output_dir and whatever else lies below that path (a logging folder, say). Raises
    UsageError where neither is there, since nothing else would keep the user's own folder safe, and where the command would
    publish what it trains.
    """
    for index, word in enumerate(command):
        following = command[index + 1].lower() if index + 1 < len(command) else ""
        if _OUTWARD.fullmatch(word) and following not in ("false", "no", "0"):
            raise UsageError("the command pushes to the Hub, and so would a drill", hint="Leave --push_to_hub out for the drill.")
    if any(PLACEHOLDER in word for word in command):
        return [word.replace(PLACEHOLDER, str(folder)) for word in command]
    own = _output_dir(command)
    if own is None:
        raise UsageError(
            "the command names no --output_dir, which a drill has to replace by a folder of its own",
            hint=f"Put {PLACEHOLDER} where the output folder stands: ckptsync drill -- python train.py --out {PLACEHOLDER}",
        )
    return [_below(word, own, str(folder)) for word in command]


def _output_dir(command: Sequence[str]) -> str | None:
    for index, word in enumerate(command):
        name, equals, value = word.partition("=")
        if _OPTION.fullmatch(name):
            return value if equals else command[index + 1] if index + 1 < len(command) else None
    return None


def _below(word: str, own: str, other: str) -> str:
    """The word with the path `own`, or one below it, moved to `other`."""
    head, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    own = own.rstrip("/") or own
    if value.rstrip("/") == own or value.startswith(own + "/"):
        value = other + value[len(own) :]
    return head + equals + value


@dataclass(frozen=True, slots=True)
class Machine:
    """One pretended machine: an output folder, and the log of what runs there."""

    output_dir: Path
    log: Path

    @property
    def last_words(self) -> str:
        """The last line of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return text.strip().rpartition("\n")[2]

    def receipts(self) -> list[Receipt]:
        """What is durable of it, in the order of saving."""
        return sorted(Spool(self.output_dir).receipts(), key=lambda each: each.sequence)

    @contextlib.contextmanager
    def running(self, command: Sequence[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """A process whose output goes to the log, and of which nothing outlives the block."""
        with self.log.open("ab") as output:
            process = subprocess.Popen(list(command), env=dict(environ), stdout=output, stderr=subprocess.STDOUT)
            try:
                yield process
            finally:
                self.kill(process)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """The machine is gone: SIGKILL for ckptsync, for the trainer, and for all that they started."""
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
        """Return when `answer` is true. Raises CkptsyncError when the process ended before, or the time is up."""
        deadline = time.monotonic() + seconds
        while not answer():
            if process.poll() is not None and not answer():
                raise CkptsyncError(
                    f"{what} was not reached: the command ended with {process.returncode}: {self.last_words}",
                    hint=f"Run again with --keep FOLDER and look at {self.log.name}.",
                )
            if time.monotonic() > deadline:
                hint = "Save more often, or give more --patience."
                raise CkptsyncError(f"{what} was not reached in {seconds:.0f} s", hint=hint)
            time.sleep(POLL)

    def saved(self, step: int) -> Saved:
        """Ask again and again whether the checkpoint of a step is saved to the end."""
        return Saved(self.output_dir, step)

    def newest(self) -> Path:
        """Its whole checkpoint with the highest step. Raises CkptsyncError when there is none."""
        whole = [path for path in self.output_dir.glob("checkpoint-*") if step_of(path.name) and layouts.inspect(path).complete]
        if not whole:
            raise CkptsyncError(f"no whole checkpoint was saved: {self.last_words}", hint="Run again with --keep FOLDER.")
        return max(whole, key=lambda path: step_of(path.name) or 0)


class Saved:
    """Whether a checkpoint is saved to the end: by the callback's word, or by its rest where there is none."""

    def __init__(self, output_dir: Path, step: int) -> None:
        self._path = output_dir / f"checkpoint-{step}"
        self._marker = Spool(output_dir).complete_markers / self._path.name
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
    """The command `ckptsync VERB …`, of this very installation."""
    return [sys.executable, "-m", "ckptsync", verb, *map(str, words)]
