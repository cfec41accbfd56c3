"""`drill`: the user's own training, killed and brought back in folders and a run of the drill's own, and compared bit by bit."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import click

from ckptsync import config
from ckptsync.checkpoint import Run, step_of
from ckptsync.cli import connections, options
from ckptsync.cli.parameter_types import Duration
from ckptsync.cli.timeline import Timeline, rehearsal_folder, show_comparison
from ckptsync.config import Connection
from ckptsync.errors import CkptsyncError, IntegrityError, StoreError
from ckptsync.rehearsal import comparison
from ckptsync.rehearsal.machine import Machine, ckptsync
from ckptsync.rehearsal.redirect import redirect
from ckptsync.store.session import open_store


@click.command(
    "drill",
    epilog="Example: ckptsync drill -- python train.py --output_dir runs/llama --save_steps 10",
    short_help="Rehearse with your own command: kill it, resume it, compare.",
)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep folders and logs in this new folder.")
@click.option("--patience", type=Duration(), default="1h", show_default=True, help="How long each of the two parts may take.")
@click.option("--hook/--no-hook", default=True, envvar="CKPTSYNC_HOOK", help="Hand the checkpoint to Trainer.train().")
@options.common
@click.argument("command", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def drill_command(
    command: tuple[str, ...],
    keep: Path | None,
    patience: float,
    hook: bool,
    project: str | None,
    entity: str | None,
    local: bool,
) -> None:
    """Run COMMAND until two checkpoints are durable, kill it with SIGKILL, resume it from the first one in an empty folder, run
    to the same step, and compare weights, optimizer, scheduler, random state and losses.

    Your output folder and your run are not touched: --output_dir (or {output_dir}) in COMMAND is replaced, the run is one
    of the drill's own, and both are deleted in the end. Exits with 5 where anything differs. Choose --save_steps small.
    """
    redirect(command, Path("/"))
    with connections.connected(local=local) as connection, rehearsal_folder(keep, "drill") as folder:
        run = config.make_run(f"drill-{secrets.token_hex(4)}", project=project, entity=entity)
        drill = Drill(run, connection, folder, list(command), patience=patience, hook=hook)
        try:
            equal = drill.rehearse()
        finally:
            if keep is None:
                drill.clean_up()
    if not equal:
        raise IntegrityError("the resumed training is not the one that was killed", hint="See the usual causes above.")


class Drill:
    """The two parts of the rehearsal, told while they happen."""

    def __init__(
        self, run: Run, connection: Connection, folder: Path, command: list[str], *, patience: float, hook: bool
    ) -> None:
        self._run = run
        self._connection = connection
        self._command = command
        self._patience = patience
        self._options = ["--project", run.project, "--backlog", "all", "--notice", "none", *([] if hook else ["--no-hook"])]
        self._options += ["--entity", run.entity] if run.entity else []
        self._lost = Machine(folder / "lost-machine", folder / "first.log")
        self._new = Machine(folder / "new-machine", folder / "second.log")
        self._timeline = Timeline()

    def rehearse(self) -> bool:
        """Play it; True when nothing differs."""
        self._timeline.say(f"run {self._run.run_id}: your command, with an output folder of the drill's own")
        with self._lost.running(self._line("run", "--run-id", self._run.run_id, machine=self._lost), self._environ()) as first:
            enough = lambda: len(self._lost.receipts()) >= 2  # noqa: E731
            self._lost.wait_for("a second durable checkpoint", enough, first, self._patience)
        target = self._lost.newest()
        reached = step_of(target.name) or 0
        durable = max((each.step for each in self._lost.receipts() if each.step < reached), default=None)
        if durable is None:
            raise CkptsyncError("no durable checkpoint lies before the last one", hint="Save more often: --save_steps.")
        self._timeline.say(f"kill -9 after step {reached}; a new machine resumes from the version of step {durable}")
        line = self._line("resume", f"{self._run.run_id}:step-{durable}", machine=self._new)
        with self._new.running(line, self._environ()) as second:
            self._new.wait_for(f"step {reached} again", self._new.saved(reached), second, self._patience)
        self._timeline.say(f"step {reached} is reached again")
        return self._compare(self._new.output_dir / target.name, target, durable)

    def clean_up(self) -> None:
        """Delete the drill's run and its versions. What can't be deleted is named."""
        try:
            with open_store(self._connection, self._run) as store:
                store.forget(store.check(self._run))
        except StoreError as error:
            self._timeline.say(f"please delete the runs {self._run} and ckptsync-{self._run.run_id} yourself: {error}")

    def _line(self, verb: str, *words: str, machine: Machine) -> list[str]:
        own = redirect(self._command, machine.output_dir)
        return [*ckptsync(verb, *words, "--output-dir", machine.output_dir), *self._options, "--", *own]

    def _environ(self) -> dict[str, str]:
        ours = {key: value for key, value in os.environ.items() if key not in ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_NAME")}
        return ours | self._connection.environment() | {"WANDB_RUN_GROUP": "ckptsync-drill"}

    def _compare(self, resumed: Path, killed: Path, durable: int) -> bool:
        results = comparison.compare(resumed, killed)
        equal = show_comparison(results)
        if not equal:
            click.echo("The usual causes, the likeliest first:")
            for cause in comparison.causes(results, resumed=durable):
                click.echo(f"  - {cause}")
        self._timeline.say(
            "verdict: a killed training of yours goes on bit by bit" if equal else "verdict: it does not go on bit by bit"
        )
        return equal
