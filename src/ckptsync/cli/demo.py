"""`demo`: kills and resumes a tiny training on this machine, with a real Trainer, the real wandb client and a real kill -9."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import click

from ckptsync import layouts
from ckptsync.checkpoint import Receipt, step_of
from ckptsync.cli import options
from ckptsync.cli.timeline import Timeline, rehearsal_folder, show_comparison
from ckptsync.errors import CkptsyncError, ConfigurationError, IntegrityError
from ckptsync.rehearsal import comparison
from ckptsync.rehearsal.machine import Machine, ckptsync
from ckptsync.sizes import size_of

STEPS, SAVE_EVERY, SEED = 60, 15, 7
PATIENCE = 120.0
"""The time limit for each step, in seconds."""


@click.command(
    "demo", epilog="Example: ckptsync demo", short_help="Kill and resume a tiny training, and compare; no account needed."
)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep checkpoints, logs and the server's data in this new folder.")
@options.common
def demo_command(keep: Path | None, project: str | None, entity: str | None, local: bool) -> None:
    """Train a tiny model, kill it with SIGKILL, delete its folder, resume it from the store, and compare every bit.

    Exits 0 only if the resumed training equals an uninterrupted one. Takes about a minute on two cores.
    """
    del entity, local
    _require_parts()
    demo = Demo(project or "ckptsync-demo")
    with rehearsal_folder(keep, "demo") as folder:
        equal = demo.rehearse(folder)
    if not equal:
        raise IntegrityError(
            "the resumed training differs from the uninterrupted one", hint="Please report this with the output above."
        )


def _require_parts() -> None:
    missing = [name for name in ("torch", "accelerate", "starlette") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"the demo needs {', '.join(missing)}", hint="pip install 'ckptsync[demo]'")


class Demo:
    """A killed and resumed training beside an uninterrupted one, with a timeline of what happens."""

    def __init__(self, project: str) -> None:
        self._project = project
        self._run_id = f"demo-{secrets.token_hex(3)}"
        self._timeline = Timeline()

    def rehearse(self, folder: Path) -> bool:
        """Run all trainings in a folder. True if nothing differs."""
        from ckptsync.server.local import local_server

        with local_server(folder / "server") as server:
            self._timeline.say(f"started a local W&B-compatible server on {server.url}")
            environ = self._environment(folder, server.url, server.api_key)
            lost, new, uninterrupted = (
                Machine(folder / name, folder / f"{log}.log")
                for name, log in (("lost-machine", "first"), ("new-machine", "second"), ("uninterrupted", "third"))
            )
            with lost.running(self._command("run", lost.output_dir), environ) as first:
                self._timeline.say(f"started training run {self._run_id}: {STEPS} steps, a checkpoint every {SAVE_EVERY}")
                durable = self._wait_for_durable(lost, first)
            reached = step_of(lost.newest().name)
            shutil.rmtree(lost.output_dir)
            self._timeline.say(f"kill -9 of the trainer and ckptsync after step {reached}; deleted their output folder")
            self._timeline.say(f"ckptsync resume {self._run_id} in an empty folder: the last durable step is {durable}")
            self._run_to_end(new, self._command("resume", new.output_dir), environ)
            self._timeline.say(f"finished the resumed training: {new.newest().name}")
            alone = environ | {"WANDB_RUN_ID": f"{self._run_id}-whole"}
            self._run_to_end(uninterrupted, _training(uninterrupted.output_dir), alone)
            self._timeline.say("finished the same training without interruption")
        return self._compare(new.newest(), uninterrupted.newest(), durable)

    def _environment(self, folder: Path, url: str, api_key: str) -> dict[str, str]:
        """An environment without the user's W&B account and ckptsync settings."""
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
        return [*ckptsync(verb, "--output-dir", output_dir, *run), "--", *_training(output_dir, slowly=verb == "run")]

    def _wait_for_durable(self, machine: Machine, process: subprocess.Popen[bytes]) -> int:
        """Wait until the second checkpoint is durable, and print each receipt as it appears."""
        shown: set[str] = set()

        def enough() -> bool:
            for receipt in machine.receipts():
                if receipt.snapshot not in shown:
                    shown.add(receipt.snapshot)
                    self._show_receipt(receipt)
            return any(each.step >= 2 * SAVE_EVERY for each in machine.receipts())

        machine.wait_for("a second durable checkpoint", enough, process, PATIENCE)
        return max(each.step for each in machine.receipts())

    def _show_receipt(self, receipt: Receipt) -> None:
        name = receipt.artifact.rpartition("/")[2]
        self._timeline.say(
            f"uploaded checkpoint-{receipt.step} as {name}:{receipt.version} ({receipt.files} files, {size_of(receipt.bytes)})"
        )

    def _run_to_end(self, machine: Machine, command: list[str], environ: dict[str, str]) -> None:
        with machine.running(command, environ) as process:
            code = process.wait(PATIENCE)
        if code:
            what = f"{' '.join(command[:5])} … exited with {code}: {machine.last_line}"
            raise CkptsyncError(what, hint="Run again with --keep FOLDER.")

    def _compare(self, resumed: Path, reference: Path, durable: int) -> bool:
        results = comparison.compare(resumed, reference)
        equal = show_comparison(results)
        result = "identical to the uninterrupted one, bit for bit" if equal else "DIFFERENT from the uninterrupted one"
        where = f"from step {durable} of {layouts.read_state(resumed).global_step}"
        self._timeline.say(f"the training killed and resumed {where} is {result}")
        return equal


def _training(output_dir: Path, *, slowly: bool = False) -> list[str]:
    """The training's command. `slowly` leaves time to kill it in the middle."""
    words = f"--max-steps {STEPS} --save-steps {SAVE_EVERY} --seed {SEED} --step-seconds {0.15 if slowly else 0}"
    return [sys.executable, "-m", "ckptsync.trainer.tiny", "--output-dir", str(output_dir), *words.split()]
