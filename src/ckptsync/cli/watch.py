"""`watch`: watches an output folder and uploads each new checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import click

from ckptsync import config, connections, processes, signals
from ckptsync.cli import options
from ckptsync.cli.parameter_types import Duration
from ckptsync.cli.watch_options import Reloadable, reload, watched
from ckptsync.errors import PreemptedError
from ckptsync.job import preemption
from ckptsync.job.heartbeat import Heartbeat
from ckptsync.job.sidecar import Sidecar
from ckptsync.job.watch_settings import WatchSettings
from ckptsync.restore import resume
from ckptsync.service import notify
from ckptsync.upload import daemon
from ckptsync.upload.stop import Stop


@click.command(
    "watch",
    cls=Reloadable,
    epilog="Example: ckptsync watch runs/llama --run-id 4kx81b2q --project llama",
    short_help="Watch an output folder and upload each new checkpoint.",
)
@click.argument(
    "output_dir", metavar="[OUTPUT_DIR]", required=False, type=click.Path(path_type=Path), envvar="CKPTSYNC_OUTPUT_DIR"
)
@click.option("--run-id", envvar="CKPTSYNC_RUN_ID", help="The training's W&B run id [default: WANDB_RUN_ID, else run.json].")
@click.option("--once", is_flag=True, help="Upload the checkpoints that exist, then exit.")
@click.option(
    "--pid", type=click.IntRange(min=1), metavar="PID", help="Exit when this process has ended and everything is uploaded."
)
@watched
@click.option(
    "--retry-for",
    type=Duration(),
    envvar="CKPTSYNC_RETRY_FOR",
    help="Give up on an unreachable store after this long [default: never; 60s with --once].",
)
@click.option(
    "--world-size", type=click.IntRange(min=1), metavar="N", envvar="CKPTSYNC_WORLD_SIZE", help="Number of training processes."
)
@click.option(
    "--allow-restart", is_flag=True, envvar="CKPTSYNC_ALLOW_RESTART", help="Accept a training that restarts from scratch."
)
@options.forcible
@options.preemptible
@options.common
def watch_command(
    output_dir: Path | None,
    run_id: str | None,
    once: bool,
    pid: int | None,
    following: WatchSettings,
    retry_for: float | None,
    world_size: int | None,
    allow_restart: bool,
    force: bool,
    notice: str,
    grace: float | None,
    project: str | None,
    entity: str | None,
    local: bool,
) -> None:
    """Watch the Trainer's OUTPUT_DIR and upload each new checkpoint as a version of checkpoint-<run_id>.

    Runs beside the training and does not affect it. SIGTERM finishes the current upload and exits, with 1 if others stay
    queued; a second SIGTERM exits at once. SIGHUP reloads backlog, spool-limit, quiet-period, stall-timeout, max-upload-rate,
    keep-* and retry-for from the settings file.
    """
    manager = notify.claim()
    if output_dir is None:
        raise click.UsageError("no output folder given: add OUTPUT_DIR, or output-dir in the settings file")
    output_dir = resume.require_output_dir(output_dir, create=False)
    run = options.run_of(output_dir, run_id=run_id, project=project, entity=entity, local=local)
    if retry_for is None and once:
        retry_for = 60.0
    with connections.connected_if_online(local=local) as connection:
        if config.upload_mode() == "disabled":
            return
        stop = Stop()
        watcher = daemon.Daemon(
            daemon.Watch(
                output_dir=output_dir,
                run=run,
                environment={**os.environ, **(connection.environment() if connection else {})},
                stem=following.stem(run, output_dir),
                store=connection.store if connection else None,
                settings=following.upload_settings(retry_for=retry_for, once=once),
                quiet=following.quiet_period,
                world_size=world_size,
                allow_restart=allow_restart,
            ),
            stop,
            manager=manager,
            reread=reload(lambda again, values: again.upload_settings(retry_for=values["retry_for"])),
        )
        with stop.on_signals(signal.SIGTERM, signal.SIGINT), watcher.held(), contextlib.ExitStack() as ending:
            sidecar = Sidecar(watcher, preemption.sources(notice), grace)
            ending.enter_context(signals.handled(signals.ANNOUNCING, signals.go_on if once else sidecar.signaled))
            following.note(output_dir)
            watcher.check_store()
            if connection:
                heartbeat = Heartbeat(connection, run, output_dir, beside=force)
                heartbeat.guard(watcher)
                ending.enter_context(heartbeat.ending())
                if not force:
                    heartbeat.require_alone(watcher.run, stop.event, training=False)
                heartbeat.start(watcher.run)
            if once:
                watcher.once()
            else:
                gone = processes.ended(pid) if pid is not None else lambda: False
                with sidecar.listening():
                    watcher.follow(ended=lambda: gone() or sidecar.ended() or watcher.lost is not None)
                    watcher.raise_outcome()
                    watcher.raise_gone()
                    if stop.event.is_set():
                        watcher.raise_queued()
                    watcher.raise_unsettled()
                    if sidecar.preempted():
                        raise click.exceptions.Exit(PreemptedError.exit_code)
