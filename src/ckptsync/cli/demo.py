"""`demo`: the whole story on a tiny model, with nothing but this machine. A real Trainer, the real client, a real kill -9."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from ckptsync import comparison, layouts, record
from ckptsync.checkpoint import Receipt, step_of
from ckptsync.cli import options
from ckptsync.errors import CkptsyncError, ConfigurationError, IntegrityError
from ckptsync.spool import Spool

STEPS, SAVE_EVERY, SEED = 60, 15, 7
PATIENCE = 120.0
"""Seconds that any one act of the story may take."""


@click.command("demo", epilog="Example: ckptsync demo", short_help="Kill a training, resume it, compare: no account needed.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep everything in this new folder.")
@options.common
def demo_command(keep: Path | None, project: str | None, entity: str | None, local: bool) -> None:
    """Train a tiny model, kill it with SIGKILL, throw its folder away, resume it from the store, and compare every bit.

    Exits with 0 only if the resumed training equals an uninterrupted one. Takes about a minute on two cores.
    """
    del entity, local
    _require_parts()
    story = Story(project or "ckptsync-demo")
    with _folder(keep) as folder:
        equal = story.tell(folder)
    if not equal:
        raise IntegrityError(
            "the resumed training differs from the uninterrupted one", hint="Please report this, with the output."
        )


def _require_parts() -> None:
    missing = [name for name in ("torch", "accelerate", "starlette") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"the demo needs {', '.join(missing)}", hint="pip install 'ckptsync[demo]'")


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep:
        keep.mkdir(parents=True)
        yield keep.absolute()
    else:
        with tempfile.TemporaryDirectory(prefix="ckptsync-demo-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)


class Story:
    """The acts of the demo, told as a timeline while they happen."""

    def __init__(self, project: str) -> None:
        self._project = project
        self._run_id = f"demo-{secrets.token_hex(3)}"
        self._started = time.monotonic()

    def tell(self, folder: Path) -> bool:
        """Play it all in a folder; True when nothing differs."""
        from ckptsync.server.local import local_server

        with local_server(folder / "server") as server:
            self._say(f"local W&B-compatible server on {server.url}")
            environ = self._environment(folder, server.url, server.api_key)
            lost, resumed, reference = folder / "lost-machine", folder / "new-machine", folder / "uninterrupted"
            with _process(self._command("run", lost), environ, folder / "first.log") as first:
                self._say(f"training started: run {self._run_id}, {STEPS} steps, a checkpoint every {SAVE_EVERY}")
                durable = self._wait_for_durable(lost, first)
                reached = self._kill(lost, first)
            shutil.rmtree(lost)
            self._say(f"kill -9 at about step {reached}: trainer and ckptsync are dead, their folder is deleted")
            self._say(f"new machine: ckptsync resume {self._run_id}, durable is step {durable}")
            self._run_to_end(self._command("resume", resumed), environ, folder / "second.log")
            self._say(f"resumed training finished: {_last(resumed).name}")
            self._run_to_end(_training(reference), {**environ, "WANDB_RUN_ID": f"{self._run_id}-whole"}, folder / "third.log")
            self._say("the same training, never interrupted: finished")
        return self._compare(_last(resumed), _last(reference), durable)

    def _environment(self, folder: Path, url: str, api_key: str) -> dict[str, str]:
        """Only what the demo set up: the account of whoever runs it stays out of it."""
        ours = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "CKPTSYNC_"))}
        return ours | {
            "WANDB_BASE_URL": url,
            "WANDB_API_KEY": api_key,
            "WANDB_PROJECT": self._project,
            "WANDB_DIR": str(folder),
            "WANDB_SILENT": "true",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "XDG_CONFIG_HOME": str(folder),
        }

    def _command(self, verb: str, output_dir: Path) -> list[str]:
        run = ["--run-id", self._run_id] if verb == "run" else [self._run_id]
        head = [sys.executable, "-m", "ckptsync", verb, "--output-dir", str(output_dir), *run, "--"]
        return [*head, *_training(output_dir, slowly=verb == "run")]

    def _wait_for_durable(self, output_dir: Path, process: subprocess.Popen[bytes]) -> int:
        """Wait until the second checkpoint is durable, telling each receipt as it comes."""
        told: set[str] = set()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and process.poll() is None:
            for receipt in Spool(output_dir).receipts():
                if receipt.snapshot not in told:
                    told.add(receipt.snapshot)
                    self._tell_receipt(receipt)
                if receipt.step >= 2 * SAVE_EVERY:
                    return receipt.step
            time.sleep(0.1)
        raise CkptsyncError("no second checkpoint became durable", hint="Run again with --keep FOLDER and look at first.log.")

    def _tell_receipt(self, receipt: Receipt) -> None:
        name = receipt.artifact.rpartition("/")[2]
        self._say(f"checkpoint-{receipt.step} is durable: {name}:{receipt.version}, {receipt.files} files, {receipt.bytes} bytes")

    def _kill(self, output_dir: Path, process: subprocess.Popen[bytes]) -> int:
        """The machine is gone: SIGKILL for ckptsync, for the trainer, and for all that they started."""
        trainers = record.read(output_dir).values.get("processes") or []
        pids = [
            process.pid,
            *(entry["pid"] for entry in trainers if isinstance(entry, dict) and "pid" in entry),
            *_children(process.pid),
        ]
        for pid in dict.fromkeys(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        return max((step_of(path.name) or 0 for path in output_dir.glob("checkpoint-*")), default=0)

    def _run_to_end(self, command: list[str], environ: dict[str, str], log: Path) -> None:
        with _process(command, environ, log) as process:
            code = process.wait(PATIENCE)
        if code:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise CkptsyncError(f"{' '.join(command[:5])} … ended with {code}: {last}", hint="Run again with --keep FOLDER.")

    def _compare(self, resumed: Path, reference: Path, durable: int) -> bool:
        results = comparison.compare(resumed, reference)
        for each in results:
            click.echo(f"          {each.part:<13} {'identical' if each.equal else 'DIFFERENT'}   {each.detail}")
        equal = all(each.equal for each in results)
        verdict = "bit for bit the uninterrupted one" if equal else "NOT the uninterrupted one"
        repeated = f"from step {durable} of {layouts.read_state(resumed).global_step}"
        self._say(f"verdict: the training that was killed and resumed {repeated} is {verdict}")
        return equal

    def _say(self, text: str) -> None:
        click.echo(f"{time.monotonic() - self._started:7.1f} s  {text}")


def _training(output_dir: Path, *, slowly: bool = False) -> list[str]:
    """The training's command. The first one dawdles, so that there is a middle in which to kill it."""
    words = f"--max-steps {STEPS} --save-steps {SAVE_EVERY} --seed {SEED} --step-seconds {0.15 if slowly else 0}"
    return [sys.executable, "-m", "ckptsync.trainer.tiny", "--output-dir", str(output_dir), *words.split()]


def _last(output_dir: Path) -> Path:
    return max(output_dir.glob("checkpoint-*"), key=lambda path: step_of(path.name) or 0)


def _children(pid: int) -> list[int]:
    """Every process below this one (/proc), deepest last."""
    found = []
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, re.findall(r"\d+", children.read_text())):
                found += [child, *_children(child)]
    return found


@contextlib.contextmanager
def _process(command: list[str], environ: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose output goes to a file, and which doesn't outlive the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
