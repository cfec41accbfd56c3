"""`drill`: kills and resumes the user's own training, in separate folders and a separate run, and compares it bit for bit."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import click

from ckptsync import config, connections
from ckptsync.checkpoint import Run, step_of
from ckptsync.cli import options
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
    short_help="Kill and resume your own training, and compare the results.",
)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep checkpoints and logs in this new folder.")
@click.option("--patience", type=Duration(), default="1h", show_default=True, help="Time limit for each of the two trainings.")
@click.option("--hook/--no-hook", default=True, envvar="CKPTSYNC_HOOK", help="Pass the checkpoint to Trainer.train().")
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
    """Run COMMAND until two checkpoints are durable, kill it with SIGKILL, resume from the first one in an empty folder, train
    to the same step, and compare weights, optimizer, scheduler, random state and losses.

    Your output folder and run are not touched: the drill replaces --output_dir (or {output_dir}) in COMMAND, uses a run of
    its own, and deletes both at the end. Exits 5 if anything differs. Choose a small --save_steps.
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
        raise IntegrityError("the resumed training differs from the killed one", hint="See the usual causes above.")


class Drill:
    """The rehearsal on two simulated machines, with a timeline of what happens."""

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
        """Run both trainings. True if nothing differs."""
        self._timeline.say(f"started your command as run {self._run.run_id} in a separate output folder")
        with self._lost.running(self._line("run", "--run-id", self._run.run_id, machine=self._lost), self._environ()) as first:
            enough = lambda: len(self._lost.receipts()) >= 2  # noqa: E731
            self._lost.wait_for("a second durable checkpoint", enough, first, self._patience)
        target = self._lost.newest()
        reached = step_of(target.name) or 0
        durable = max((each.step for each in self._lost.receipts() if each.step < reached), default=None)
        if durable is None:
            raise CkptsyncError("no checkpoint before the last one is durable", hint="Save more often: lower --save_steps.")
        self._timeline.say(f"killed with SIGKILL after step {reached}; resuming from step {durable} in an empty folder")
        line = self._line("resume", f"{self._run.run_id}:step-{durable}", machine=self._new)
        with self._new.running(line, self._environ()) as second:
            self._new.wait_for(f"step {reached} again", self._new.saved(reached), second, self._patience)
        self._timeline.say(f"the resumed training reached step {reached}")
        return self._compare(self._new.output_dir / target.name, target, durable)

    def clean_up(self) -> None:
        """Delete the drill's run and its versions, or name what could not be deleted."""
        try:
            with open_store(self._connection, self._run) as store:
                store.forget(store.check(self._run))
        except StoreError as error:
            self._timeline.say(
                f"could not delete the runs {self._run} and ckptsync-{self._run.run_id}; delete them by hand: {error}"
            )

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
            "identical: your training resumes bit for bit" if equal else "DIFFERENT: your training does not resume bit for bit"
        )
        return equal
