"""A watcher in the background of a program or notebook: a process of its own, which outlives neither its work nor its parent."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ckptsync import config, connections, locks, record, state_folder
from ckptsync.checkpoint import Run
from ckptsync.errors import (
    CkptsyncError,
    ConfigurationError,
    IntegrityError,
    LockedError,
    NotFoundError,
    TransientStoreError,
)
from ckptsync.job import overview
from ckptsync.restore import resume
from ckptsync.trainer import ATTEMPT, OUTPUT_DIR
from ckptsync.upload.held_folder import require_watched_for
from ckptsync.upload.spool import Spool

log = logging.getLogger(__name__)

READY_SECONDS = 120.0
"""How long a watcher may take until it watches; a store that doesn't answer costs half a minute of it."""

KINDS: dict[int, type[CkptsyncError]] = {
    kind.exit_code: kind for kind in (ConfigurationError, NotFoundError, IntegrityError, TransientStoreError, LockedError)
}
"""What an exit code of the watcher stands for."""


@dataclass(frozen=True, slots=True)
class Watching:
    """A background watcher. `log` is the file that it writes to.

    Below `ckptsync run` or `resume`, which watches the folder already, `process` and `log` are None: that watcher goes on after
    the block, and the exit code of `run` says whether everything became durable.
    """

    output_dir: Path
    run: Run
    log: Path | None
    process: subprocess.Popen[bytes] | None

    @property
    def alive(self) -> bool:
        """Whether it is still running."""
        return _is_held(self.output_dir) if self.process is None else self.process.poll() is None

    def stop(self, *, timeout: float | None = None) -> int:
        """Upload the complete checkpoints, stop the watcher and return its exit code; None waits as long as that takes.

        After `timeout` seconds it is killed; what it hasn't uploaded stays queued for the next start. Below `run`, stops nothing
        and doesn't wait: 0 if everything is durable by now, else 1.
        """
        if self.process is None:
            return 0 if self.error() is None else 1
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def error(self) -> CkptsyncError | None:
        """What its end means, None where it left everything durable. Only for one that has ended; below `run`, at any time."""
        if self.process is None or self.log is None:
            return _undurable(self.output_dir)
        code = self.process.returncode
        if code == 0:
            return None
        if code < 0:
            text = f"the watcher of {self.output_dir} was killed ({signal.Signals(-code).name}) before everything was durable"
            return CkptsyncError(text, hint="What is missing is queued: watch the folder again, or run `ckptsync watch --once`.")
        kind = KINDS.get(code, CkptsyncError)
        return kind(f"the watcher ended with {code}: {_last_line(self.log)}", hint=f"See {self.log}.")


@contextlib.contextmanager
def watch_in_background(
    output_dir: str | os.PathLike[str],
    *,
    run_id: str | None = None,
    project: str | None = None,
    entity: str | None = None,
    local: bool = False,
    flush_timeout: float | None = 600.0,
) -> Iterator[Watching]:
    """Upload the checkpoints of an output_dir while the block lasts: `with watch_in_background("out"): trainer.train()`.

    It is a separate process, so neither `run.finish()` nor the end of this interpreter has to wait for it. It exits when this
    process does, after uploading what is queued. The block begins when it is watching, and its end waits until everything is
    durable. A watcher that ends before the block does is reported on stderr at once.

    In a program that `ckptsync run` or `resume` started, and whose output_dir that watches already, no process is started and the
    end of the block waits for nothing: `run` uploads, to the run, project and server that it was given.

    Args:
        output_dir: The Trainer's output_dir; created if missing.
        run_id: The run; else the active one of this process, else WANDB_RUN_ID, else run.json, else a new one, which the
            Trainer's own `wandb.init` inside the block takes from WANDB_RUN_ID.
        project: As in `pull`; else that of the active run.
        entity: As in `pull`; else that of the active run.
        local: Use the embedded server, for the training inside the block as well.
        flush_timeout: Seconds that the end of the block may wait; None for as long as it takes.

    Raises:
        CkptsyncError: The watcher could not start, was killed, or did not make everything durable; as the class that its
            exit code stands for. Not where the block itself raises.
    """
    folder = resume.require_output_dir(Path(output_dir), create=True)
    if above := _run_above(folder, run_id):
        log.info("ckptsync watches %s for run %s above this process: starting no watcher", folder, above)
        yield Watching(folder, above, None, None)
        return
    with contextlib.ExitStack() as stack:
        if local:
            stack.enter_context(connections.environment_of(local=True))
        run = _run_here(folder, run_id, project, entity)
        if "WANDB_RUN_ID" not in os.environ:
            stack.enter_context(_variables(WANDB_RUN_ID=run.run_id, WANDB_RESUME="allow"))
        watching = _start(folder, run)
        threading.Thread(target=_report_early_end, args=(watching, over := threading.Event()), daemon=True).start()
        try:
            yield watching
        finally:
            over.set()
            watching.stop(timeout=flush_timeout)
    if error := watching.error():
        raise error


def _run_above(output_dir: Path, run_id: str | None) -> Run | None:
    """The run for which the `run` or `resume` that started this program watches the folder; None where none does.

    `run_id` is the run that the program names; where it names none, any. Raises LockedError if somebody else watches the folder
    for another run.
    """
    watched, known = os.environ.get(OUTPUT_DIR), record.read(output_dir)
    found, started = known.text("run_id"), os.environ.get(ATTEMPT) in {each.id for each in known.attempts}
    here = watched is not None and os.path.realpath(watched) == os.path.realpath(output_dir)
    if not (here and started and found and run_id in (None, found) and _is_held(output_dir)):
        return None
    run = config.make_run(found, project=known.text("project"), entity=known.text("entity"))
    require_watched_for(run, output_dir)
    return run


def _is_held(output_dir: Path) -> bool:
    """Whether anybody watches the folder."""
    return locks.FolderLock(Spool(output_dir).lock_path, of=output_dir).holder is not None


def _undurable(output_dir: Path) -> CkptsyncError | None:
    """What is missing in the store by now, as `ckptsync status` shows it."""
    now = overview.report(output_dir)
    if not (now["pending"] or now["parked"] or now["at_risk_steps"]):
        return None
    return CkptsyncError(
        f"not everything in {output_dir} is durable yet: {now['pending']} queued, {now['parked']} parked,"
        f" {now['at_risk_steps']} steps at risk",
        hint="The `ckptsync run` above this process uploads it, and its exit code says whether it did.",
    )


def _start(folder: Path, run: Run) -> Watching:
    """Start a watcher and wait until it watches. Raises what it ends with before."""
    own_log = state_folder.make(folder) / "watch.log"
    words = ["watch", str(folder), "--run-id", run.run_id, "--project", run.project, "--pid", str(os.getpid())]
    words += ["--entity", run.entity] if run.entity else []
    # The path of a socket has at most 107 bytes.
    root = "/tmp" if len(tempfile.gettempdir()) > 70 else None  # noqa: S108 - a folder of its own is made in it
    with (
        tempfile.TemporaryDirectory(prefix="ckptsync-", dir=root) as private,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
    ):
        # It says so as to a service manager (sd_notify).
        ready.bind(f"{private}/ready")
        with own_log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ckptsync", *words],
                env=connections.without_session() | {"NOTIFY_SOCKET": f"{private}/ready"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A Ctrl-C in the notebook interrupts the training, not the uploads.
                start_new_session=True,
            )
        watching = Watching(folder, run, own_log, process)
        _await_ready(watching, ready)
    return watching


def _await_ready(watching: Watching, ready: socket.socket) -> None:
    ready.settimeout(0.1)
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if not watching.alive:
            raise watching.error() or CkptsyncError(f"the watcher of {watching.output_dir} ended at once")
        with contextlib.suppress(TimeoutError):
            if b"READY=1" in ready.recv(4096):
                return


def _report_early_end(watching: Watching, over: threading.Event) -> None:
    if watching.process is not None:
        watching.process.wait()
    if not over.is_set():
        sys.stderr.write(f"ckptsync: nothing is uploaded any more: {watching.error() or 'the watcher ended'}\n")


def _run_here(output_dir: Path, run_id: str | None, project: str | None, entity: str | None) -> Run:
    """The run that trains in this folder, from the arguments, the active run, the environment and run.json; else a new one."""
    active = getattr(sys.modules.get("wandb"), "run", None)
    known = record.read(output_dir)
    found = run_id or getattr(active, "id", None) or os.environ.get("WANDB_RUN_ID") or known.text("run_id")
    project = project or getattr(active, "project", None) or os.environ.get("WANDB_PROJECT") or known.text("project")
    entity = entity or getattr(active, "entity", None) or known.text("entity")
    return config.make_run(found or secrets.token_hex(4), project=project, entity=entity)


@contextlib.contextmanager
def _variables(**values: str) -> Iterator[None]:
    """Set these variables of this process while the block lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"
