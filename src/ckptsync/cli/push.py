"""`push`: uploads one checkpoint, or the parked ones."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from ckptsync import config, connections, record, signals
from ckptsync.checkpoint import Checkpoint, Receipt, Run, step_of
from ckptsync.cli import options
from ckptsync.config import Connection
from ckptsync.errors import CkptsyncError, IntegrityError, LockedError, PermanentStoreError, SnapshotChangedError, UsageError
from ckptsync.restore import resume
from ckptsync.store.retrying import Patience, retry
from ckptsync.upload import daemon
from ckptsync.upload.settings import UploadSettings
from ckptsync.upload.spool import Spool
from ckptsync.upload.stop import Stop
from ckptsync.upload.validation import validate

GIVE_UP_AFTER = 60.0
"""Seconds to retry an unreachable store."""

WAIT_FOR_WATCHER = 600.0
"""Seconds to wait for a running watcher to retry what is parked."""


@click.command(
    "push",
    epilog="Example: ckptsync push runs/llama/checkpoint-500 --run-id 4kx81b2q",
    short_help="Upload one checkpoint, or retry the parked ones.",
)
@click.argument("directory", metavar="CHECKPOINT_DIR", type=click.Path(path_type=Path))
@click.option("--parked", is_flag=True, help="Retry all parked uploads; the argument is an output folder.")
@click.option("--run-id", envvar="CKPTSYNC_RUN_ID", help="The training's W&B run id [default: WANDB_RUN_ID, else run.json].")
@options.max_upload_rate
@options.as_json
@options.common
def push_command(
    directory: Path,
    parked: bool,
    run_id: str | None,
    max_upload_rate: int | None,
    as_json: bool,
    project: str | None,
    entity: str | None,
    local: bool,
) -> None:
    """Upload CHECKPOINT_DIR (…/checkpoint-N) as a version of its run, if it is complete.

    Pushing it again makes no second version. With --parked, give an output folder: its parked uploads are retried.
    JSON: a list of {checkpoint, step, artifact, version, bytes, files, seconds}.
    """
    if (mode := config.upload_mode()) != "online":
        raise UsageError(f"W&B is {mode} (WANDB_MODE or WANDB_DISABLED): nothing was uploaded", hint="Unset it, then push again.")
    folder = directory.expanduser().absolute()
    output_dir = folder if parked else _require_checkpoint(folder).parent
    output_dir = resume.require_output_dir(output_dir, create=False)
    run = options.run_of(output_dir, run_id=run_id, project=project, entity=entity, local=local)
    theirs = record.read(output_dir).text("run_id")
    if theirs not in (None, run.run_id):
        raise UsageError(f"{output_dir} belongs to run {theirs}, not {run.run_id}", hint="Leave out --run-id.")
    patience = Patience(first=0.5, longest=15.0, give_up_after=GIVE_UP_AFTER)
    with signals.handled(signals.ANNOUNCING, signals.go_on), connections.connected(local=local) as connection:
        options.require_own_project(output_dir, run, connection)
        watch = daemon.Watch(
            output_dir=output_dir,
            run=run,
            environment={**os.environ, **connection.environment()},
            stem=run.run_id,
            store=connection.store,
            settings=UploadSettings(keep_all=True, patience=patience, max_rate=max_upload_rate or None),
        )
        watched = daemon.Daemon(watch, Stop())
        try:
            with watched.held():
                if not parked:
                    _forget_deleted(watched.spool, folder, run, connection, patience)
                names = {each.name for each in watched.spool.pending()} if parked else {_pin(watched.spool, folder)}
                retry(watched.uploader.check, what="the log-in", patience=patience)
                if not watched.uploader.drain():
                    watched.raise_outcome()
        except LockedError:
            if not parked:
                raise
            names = _have_retried(watched.spool)
        receipts = [each for each in watched.spool.receipts if each.snapshot in names]
        _require_durable(names - {each.snapshot for each in receipts}, watched.spool)
    _show(receipts, as_json=as_json)


def _forget_deleted(spool: Spool, folder: Path, run: Run, connection: Connection, patience: Patience) -> None:
    """Delete the receipts of a checkpoint whose version somebody deleted from the store: who pushes it wants it there."""
    receipts = list(spool.receipts.of(folder.name))
    if not receipts:
        return
    from ckptsync.store.session import open_store

    with open_store(connection, run) as store:
        for each in receipts:
            name = each.artifact.rpartition("/")[2]
            there = retry(partial(store.versions, name), what="the list of versions", patience=patience)
            if all(version.qualified != f"{each.artifact}:{each.version}" or version.digest != each.digest for version in there):
                spool.receipts.drop(each)


def _have_retried(spool: Spool) -> set[str]:
    """Ask the watcher that holds the folder to retry what is parked, and wait for it. Returns the names of that."""
    before = spool.parkings()
    if not before:
        return set()
    spool.request_retry()
    deadline = time.monotonic() + WAIT_FOR_WATCHER
    while time.monotonic() < deadline:
        now = spool.parkings()
        if all(now.get(name, parking) != parking or _is_settled(name, spool) for name, parking in before.items()):
            return set(before)
        time.sleep(0.2)
    raise CkptsyncError(
        f"{', '.join(sorted(before))} is still queued: the watcher of the folder was asked to retry it",
        hint="Follow it with `ckptsync status`.",
    )


def _require_checkpoint(folder: Path) -> Path:
    if not folder.is_dir() or step_of(folder.name) is None:
        raise UsageError(f"{folder} is not a checkpoint-N folder", hint="Give one, or an output folder with --parked.")
    return folder


def _pin(spool: Spool, folder: Path) -> str:
    """Queue the checkpoint unless it is queued or durable already. Returns its snapshot's name."""
    verdict = validate(folder, spool)
    if not verdict.complete:
        raise IntegrityError(f"{folder} is incomplete: {verdict.problems[0]}", hint="List all problems with `ckptsync verify`.")
    checkpoint = Checkpoint(folder, step_of(folder.name) or 0, verdict)
    name = f"{checkpoint.name}.{checkpoint.fingerprint}"
    if not spool.knows(name):
        spool.pin(checkpoint, latest=not _is_older(spool, checkpoint))
    return name


def _is_older(spool: Spool, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint was saved before the one that is durable: pushed later, it must not take `latest` from that."""
    newest = spool.receipts.newest()
    if newest is None:
        return False
    attempt = spool.attempt_of(checkpoint.name, checkpoint.fingerprint) or newest.attempt or 0
    return (attempt, checkpoint.step) < (newest.attempt or 0, newest.step)


def _is_settled(name: str, spool: Spool) -> bool:
    """Whether a snapshot is durable, or superseded by a newer one."""
    return name in spool.receipts or not spool.knows(name)


def _require_durable(missing: set[str], spool: Spool) -> None:
    """Raise the reason why one of them is not durable."""
    for pinned, reason in spool.parked():
        if pinned.name in missing:
            raise PermanentStoreError(f"{pinned.checkpoint} was not uploaded: parked: {reason}")
    for name in sorted(missing):
        raise SnapshotChangedError(f"{name.partition('.')[0]} was modified during the upload", hint="Push it again.")


def _show(receipts: list[Receipt], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_report(each) for each in receipts], indent=1))
        return
    for each in receipts:
        click.echo(f"uploaded {each.snapshot.partition('.')[0]} as {each.artifact}:{each.version}")
    if not receipts:
        click.echo("no parked uploads", err=True)


def _report(receipt: Receipt) -> dict[str, Any]:
    return {
        "checkpoint": receipt.snapshot.partition(".")[0],
        "step": receipt.step,
        "artifact": receipt.artifact,
        "version": receipt.version,
        "bytes": receipt.bytes,
        "files": receipt.files,
        "seconds": round(receipt.seconds, 3),
    }
