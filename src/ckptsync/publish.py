"""The child process that uploads: `python -m ckptsync.publish`. Jobs come on stdin, answers go to stdout, a JSON line each.

It exists because hashing maps files into memory: one that is truncated meanwhile kills the process with SIGBUS, which no Python
can catch (wandb 0.31, measured). Here that is a failed attempt. It ends when stdin ends; the key comes by the environment.

    in   {"op": "check"}, {"op": "upload", "snapshot": PATH, "upload": {name, aliases, metadata}},
         {"op": "model", "folder": PATH, "files": [{path, size, mtime_ns}], "upload": …} {"op": "prune", "name", "policy": …},
         {"op": "list"}, {"op": "pull", "alias", "destination", "model"} or {"op": "place", "alias", "output_dir"};
         each with the run
    out  {"event": "progress", "stage", "done", "total", "moved"} … then {"event": "done", …}
         or {"event": "failed", error, message, hint, retry_after}

`done` and `total` are bytes; `moved` only grows, with anything that shows progress. The lines begin before the first job: on a
busy machine the client's import takes long.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from ckptsync import config, layouts, record
from ckptsync.checkpoint import File, Run, Snapshot, Version
from ckptsync.errors import CkptsyncError, PermanentStoreError, TransientStoreError
from ckptsync.restore import download, listing, sources
from ckptsync.restore.resume import Resume
from ckptsync.store import artifact, client_activity
from ckptsync.store.contract import Upload
from ckptsync.upload import lineage, retention, snapshot
from ckptsync.upload.retention import Retention

RECENT = 86400.0
"""Seconds: what WandbCallback uploaded before that is history, not a second uploader."""

YIELDING = 19
"""The niceness of a process that takes only idle CPU time. wandb-core, our own child, has it too."""

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h. Not on other systems, where the end of stdin alone says that the parent is gone."""

PROGRESS_INTERVAL = 1.0
"""Seconds between two progress lines. By them the parent also distinguishes a slow upload from a stalled one."""


def main() -> int:
    """Serve jobs until stdin ends. The first line of stdin says for which run and where to keep the client's own files."""
    _outlive_signals()
    # The client writes its own log into a file. On a full disk, each of its lines would print a traceback beside the one sentence
    # that the job's answer becomes.
    logging.raiseExceptions = False
    answers = Answers(_claim_stdout())
    jobs = _jobs()
    hello = jobs.get() or {}
    _die_with(hello.get("parent"))
    if hello.get("yielding"):
        # The kernel derives the disk's priority from it (ioprio_set(2)): the lowest that never starves. A service whose system
        # calls are filtered may not ask; its unit has set the priorities then, and an upload is worth more than its niceness.
        with contextlib.suppress(OSError):
            os.nice(YIELDING)
    try:
        with answers.progress_lines():
            from ckptsync.store.wandb_store import WandbStore

            publisher = Publisher(WandbStore(config.connection(), Run(**hello["run"]), Path(hello["private"])), answers)
    except OSError as error:
        # Not before the job: who finds nobody to give it to counts this process as broken for good.
        jobs.get()
        answers.failed(TransientStoreError(f"the upload process cannot write to {hello['private']}: {error.strerror}"))
        return 1
    try:
        while (job := jobs.get()) is not None:
            publisher.serve(job)
    finally:
        publisher.store.close()
    return 0


def _outlive_signals() -> None:
    """Leave signals to the parent: one to every process of a job (scancel --full) must not end the current upload.

    Blocked, not ignored, since wandb-core inherits that: Go's runtime has a handler of its own for what is ignored.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})


def _die_with(parent: int | None) -> None:
    """End when the parent does, however it ends: an orphan would upload beside the next watcher."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def _jobs() -> queue.Queue[dict[str, Any] | None]:
    """The lines of stdin, None at its end."""
    jobs: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def read() -> None:
        parent = None
        for line in sys.stdin:
            job = json.loads(line)
            parent = job.get("parent", parent)
            jobs.put(job)
        jobs.put(None)
        # Where the kernel doesn't end an orphan, the end of stdin in the middle of a job does.
        while parent is not None and os.getppid() == parent:
            time.sleep(PROGRESS_INTERVAL)
        if parent is not None:
            os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return jobs


def _claim_stdout() -> TextIO:
    """Keep stdout for the answers alone: what the client prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


class Answers:
    """What the parent reads: exactly one `done` or `failed` for each job, and lines before it that show progress."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._done = self._total = 0

    def done(self, result: Mapping[str, Any]) -> None:
        """The job is done."""
        self._write({"event": "done", **result})

    def failed(self, error: Exception) -> None:
        """The job failed."""
        message = str(error) if isinstance(error, CkptsyncError) else f"{type(error).__name__}: {error}"
        wait = getattr(error, "retry_after", 0.0)
        hint = getattr(error, "hint", None)
        self._write({"event": "failed", "error": _kind(error), "message": message, "hint": hint, "retry_after": wait})

    def note(self, done: int, total: int) -> None:
        """How many bytes of the job are done, as far as the store tells."""
        self._done, self._total = done, total

    @contextlib.contextmanager
    def progress_lines(self) -> Iterator[None]:
        """Report once an interval how far this process is, while the block lasts."""
        over = threading.Event()
        self._done = self._total = 0
        sent_before, _ = client_activity.sample()

        def report() -> None:
            while not over.wait(PROGRESS_INTERVAL):
                sent, moved = client_activity.sample()
                done = max(self._done, min(sent - sent_before, self._total))
                stage = "upload" if self._total else "hash"
                line = {"stage": stage, "done": done, "total": self._total, "moved": moved + self._done}
                self._write({"event": "progress", **line})

        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        try:
            yield
        finally:
            over.set()
            reporter.join()

    def _write(self, answer: dict[str, Any]) -> None:
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()


@dataclass(frozen=True, slots=True)
class _Place:
    """An upload in its place among the versions of all folders of its run.

    `later` names the version that keeps `latest`, if that was saved later. `attempt` is that of the version which this save
    continues, if it is higher than the save's own: another folder counted on.
    """

    upload: Upload
    later: str | None = None
    attempt: int | None = None


class Publisher:
    """Does jobs one by one."""

    def __init__(self, store: Any, answers: Answers) -> None:
        self.store = store
        self._answers = answers
        self._looked_for_others = False
        self._operations = {"check": self._check, "upload": self._upload, "model": self._upload_model, "prune": self._prune}
        self._operations |= {"list": self._list, "pull": self._pull, "place": self._place}

    def serve(self, job: dict[str, Any]) -> None:
        """Answer one job. Whatever goes wrong is an answer too, so that the parent can decide."""
        try:
            with self._answers.progress_lines():
                result = self._operations[job["op"]](job)
        except Exception as error:
            self._answers.failed(error)
        else:
            self._answers.done(result)

    def _check(self, job: dict[str, Any]) -> dict[str, Any]:
        return {"run": asdict(self.store.check(Run(**job["run"])))}

    def _upload(self, job: dict[str, Any]) -> dict[str, Any]:
        started = time.time()
        pinned = snapshot.load(Path(job["snapshot"]))
        run = self.store.check(Run(**job["run"]))
        place = self._place_in_order(_upload_of(job), pinned, run, job)
        version = self.store.put(pinned, place.upload, progress=self._answers.note)
        _require_own(version, run)
        snapshot.leave_cache(pinned)
        seconds = time.time() - started
        attached = self.store.attach(version, run)
        with contextlib.suppress(CkptsyncError):
            lag = time.time() - pinned.saved_at
            self.store.measure({"upload_seconds": seconds, "bytes": pinned.bytes, "lag_seconds": lag, "step": pinned.step})
        others = self._others(run, started)
        order = {"later": place.later, "attempt": place.attempt}
        return {"version": asdict(version), "seconds": seconds, "attached": attached, "others": others, **order}

    def _place_in_order(self, upload: Upload, pinned: Snapshot, run: Run, job: dict[str, Any]) -> _Place:
        """The upload in its place before or behind the version that has `latest`, which may be of another folder.

        What this folder itself uploaded last (`own`) is no rival, since the queue knows the order, nor is a version of an attempt
        from which somebody chose to go `back`: of that number or a lower one.
        """
        holder = None if upload.latest else self.store.latest(upload.name)
        if holder is None or holder.ours.get("run") != run.run_id:
            return _Place(upload)
        save, own = lineage.save_of(pinned), holder.version == job.get("own")
        back = job.get("back")
        if back is not None and (holder.attempt is None or holder.attempt <= back):
            return _Place(upload)
        follows = own and holder.step is not None and save.step > holder.step
        if follows or lineage.continues(holder, save, partial(layouts.rows_digest, pinned.content)):
            if holder.attempt is None or save.attempt is None or save.attempt >= holder.attempt:
                return _Place(upload)
            ours = {**upload.metadata["ckptsync"], "attempt": holder.attempt}
            return _Place(replace(upload, metadata={**upload.metadata, "ckptsync": ours}), attempt=holder.attempt)
        if own or not lineage.is_later(holder, save):
            return _Place(upload)
        return _Place(replace(upload, latest=holder.version), later=f"{holder}, step {holder.step}")

    def _others(self, run: Run, now: float) -> str | None:
        """The artifact to which HF's WandbCallback uploads this training's checkpoints too; looked up once."""
        if self._looked_for_others:
            return None
        self._looked_for_others = True
        with contextlib.suppress(CkptsyncError):
            for each in self.store.versions(artifact.artifact_name(run.run_id, kind="model")):
                if not each.ours and each.step is not None and each.created_at > now - RECENT:
                    return str(each)
        return None

    def _upload_model(self, job: dict[str, Any]) -> dict[str, Any]:
        started = time.time()
        upload = _upload_of(job)
        files = [File(**file) for file in job["files"]]
        run = self.store.check(Run(**job["run"]))
        version = self.store.put_model(Path(job["folder"]), files, upload)
        _require_own(version, run)
        return {"version": asdict(version), "seconds": time.time() - started, "attached": self.store.attach(version, run)}

    def _prune(self, job: dict[str, Any]) -> dict[str, Any]:
        run = self.store.check(Run(**job["run"]))
        # Where artifacts are named after the run's name, those of another run may lie beside ours.
        versions = [each for each in self.store.versions(job["name"]) if each.ours.get("run") == run.run_id]
        choices = retention.plan(self.store, versions, Retention(**job["policy"]), time.time())
        # What was just uploaded stays, wherever it stands in the order.
        choices = [each for each in choices if each.version.version != job.get("uploaded")]
        return {"gone": [{"version": each.version, "step": each.step} for each in retention.sweep(self.store, choices)]}

    def _list(self, job: dict[str, Any]) -> dict[str, Any]:
        _, found = self._known(job)
        return {"versions": [listing.row(each) for each in retention.newest_first(found)]}

    def _pull(self, job: dict[str, Any]) -> dict[str, Any]:
        run, found = self._known(job)
        versions = download.select(found, run, job["alias"], model=job["model"])
        pulled = download.pull(self.store, versions, Path(job["destination"]), progress=self._answers.note)
        return {"path": str(pulled.path), "step": pulled.step, "qualified": pulled.version.qualified, "run": asdict(run)}

    def _place(self, job: dict[str, Any]) -> dict[str, Any]:
        run, _ = self._known(job)
        placed = Resume(self.store, run, Path(job["output_dir"]), progress=self._answers.note).place(job["alias"])
        version = placed.source.version
        resumed_version = str(version) if version else None
        record.begin_attempt(Path(job["output_dir"]), resumed_step=placed.step, resumed_version=resumed_version)
        return {"path": str(placed.path), "qualified": version.qualified if version else None, "run": asdict(run)}

    def _known(self, job: dict[str, Any]) -> tuple[Run, list[Version]]:
        """The run and its versions. Raises NotFoundError where there is neither; one that logs nothing may have versions."""
        run = self.store.check(Run(**job["run"]))
        found = sources.find_versions(self.store, run)
        if not found:
            self.store.run_state(run)
        return run, found


def _require_own(version: Version, run: Run) -> None:
    """Raise where the store had these very bytes already, as a version of another run: that one it returns, and makes no second.

    So it is where two runs of one name compute the same: nobody would find it under this run.
    """
    theirs = version.ours.get("run")
    if theirs not in (None, run.run_id):
        raise PermanentStoreError(
            f"{version} has the same bytes and is a checkpoint of run {theirs}: the store keeps them once",
            hint=f"Give run {run.run_id} a name of its own, or leave out --name-by run-name; then start the same command again.",
        )


def _kind(error: Exception) -> str:
    """The name of our class for it. A file system that fails for a while (EIO, EACCES) is no reason to park anything."""
    if isinstance(error, OSError):
        return "TransientStoreError"
    return type(error).__name__ if isinstance(error, CkptsyncError) else "CkptsyncError"


def _upload_of(job: dict[str, Any]) -> Upload:
    return Upload(**{**job["upload"], "aliases": tuple(job["upload"]["aliases"])})


if __name__ == "__main__":
    raise SystemExit(main())
