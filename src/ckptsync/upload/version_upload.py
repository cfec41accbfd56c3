"""Makes one snapshot durable: its version, the final model beside it, the receipt, and the pruning afterwards.

Puts jobs to the upload process and keeps what came of them; when to try and when to retry is the uploader's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ckptsync import layouts, record
from ckptsync.checkpoint import Receipt, Rows, Run, Snapshot
from ckptsync.errors import CkptsyncError, SnapshotChangedError, TransientStoreError
from ckptsync.layouts import final_model
from ckptsync.sizes import size_of
from ckptsync.store import artifact
from ckptsync.upload import lineage
from ckptsync.upload.child_lifecycle import ChildLifecycle
from ckptsync.upload.deadline import Deadline
from ckptsync.upload.settings import UploadSettings
from ckptsync.upload.spool import Spool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the current upload is, in bytes. `moved` grows by anything that shows life, also while files are hashed."""

    snapshot: Snapshot
    stage: str
    done: int
    total: int
    moved: int


class VersionUpload:
    """Publishes snapshots of one run. `durable` is the receipt of the newest durable checkpoint, `rate` in bytes per second.

    With `back`, `latest` also goes to a checkpoint that lies behind the store's: the training may start over.
    """

    def __init__(self, run: Run, spool: Spool, process: ChildLifecycle, *, stem: str, back: bool) -> None:
        self.run = run
        self.durable = spool.receipts.newest()
        self.finished = False
        """Whether the checkpoint of the training's last step became durable since the training's start."""
        self.progress: Progress | None = None
        self.rate: float | None = None
        self.begun = 0.0
        self._spool = spool
        self._process = process
        self._stem = stem
        self._back = back
        self._announced = ""
        self._warned_of_others = False
        self._warned_of_other_run = False

    def publish(self, pinned: Snapshot, settings: UploadSettings, deadline: Deadline | None) -> None:
        """Upload, write the receipt, release the pin, and prune. Raises what kept the snapshot from becoming durable."""
        if pinned.name != self._announced:
            # Not again with every attempt: a store may be unreachable for days.
            self._announced = pinned.name
            log.info("uploading %s (%d files, %s)", pinned.checkpoint, len(pinned.files), size_of(pinned.bytes))
        self.begun = time.monotonic()
        try:
            if settings.only_model:
                answer = self._put_model(pinned)
            else:
                answer = self._put(pinned, deadline)
                # Before the pin is released: it holds the files of the model too.
                self._put_model_beside(pinned)
        finally:
            self.progress = None
        self.finished |= bool(pinned.state and pinned.state.finished)
        receipt = _receipt(pinned, answer, self._spool.store)
        self._spool.commit(pinned, receipt)
        self.durable = lineage.newest([*filter(None, [self.durable]), receipt])
        self.rate = receipt.bytes / receipt.seconds if receipt.seconds else None
        name = receipt.artifact.rpartition("/")[2]
        log.info(
            "uploaded %s as %s:%s (%d files, %s, %.1f s)",
            *(pinned.checkpoint, name, receipt.version, receipt.files, size_of(receipt.bytes), receipt.seconds),
        )
        if not answer["attached"]:
            log.warning("run %s is not on the server yet: %s stays with the run ckptsync-%s", self.run, name, self.run.run_id)
        if settings.keep and deadline is None:
            self._prune(name, settings, receipt.version)

    def _put(self, pinned: Snapshot, deadline: Deadline | None) -> dict[str, Any]:
        preempted = self._spool.markers.preempted(pinned.checkpoint, pinned.fingerprint)
        preempted |= deadline is not None and pinned.name not in deadline.queued
        known = record.read(self._spool.output_dir)
        self._follow_project(known)
        self._warn_of_other_run(known)
        upload = artifact.describe(pinned, self.run, known, stem=self._stem, preempted=preempted)
        if self.durable and self.durable.sequence > pinned.sequence:
            upload = replace(upload, latest=self.durable.version)
        job: dict[str, Any] = {
            "op": "upload",
            "run": asdict(self.run),
            "snapshot": str(pinned.directory),
            "upload": asdict(upload),
        }
        job |= {"own": self.durable.version if self.durable else None, "back": self._back_from(pinned, known)}
        answer = self._process.ask(job, on_progress=lambda line: self._note(pinned, line))
        if attempt := answer.get("attempt"):
            # The next start here, and the saves after this one, stand above what another folder counted.
            record.note_highest_attempt(self._spool.output_dir, attempt)
        if later := answer.get("later"):
            log.warning("latest stays with %s, which was saved later than %s", later, pinned.checkpoint)
        if answer.get("others") and not self._warned_of_others:
            self._warned_of_others = True
            hint = "start the training with WANDB_LOG_MODEL=false, and it no longer waits for that"
            log.warning("HF's WandbCallback uploads these checkpoints too, as %s: %s", answer["others"], hint)
        return answer

    def _back_from(self, pinned: Snapshot, known: record.Record) -> int | None:
        """The highest attempt from which somebody chose to go back; None where nobody did."""
        allowed = (pinned.attempt or 0) if self._back else None
        chosen = known.rolled_back[1] if known.rolled_back else None
        return max((each for each in (allowed, chosen) if each is not None), default=None)

    def _follow_project(self, known: record.Record) -> None:
        """Take the project that the training's own wandb.init names, unless checkpoints are in the other one already."""
        project = known.text("project")
        begun = self.durable is not None and self.durable.artifact.split("/")[1:2] == [self.run.project]
        if begun or project in (None, self.run.project) or known.text("run_id") != self.run.run_id:
            return
        log.warning("the training and its checkpoints go to project %s, not %s", project, self.run.project)
        self.run = Run(self.run.run_id, str(project), known.text("entity") or self.run.entity)

    def _warn_of_other_run(self, known: record.Record) -> None:
        """Once, where the training's own wandb.init names another run than the one that its checkpoints go to."""
        named = record.Record(known.values.get("logs_to") or known.values)
        found = (named.text("project") or self.run.project, named.text("run_id") or self.run.run_id)
        if found != (self.run.project, self.run.run_id) and not self._warned_of_other_run:
            self._warned_of_other_run = True
            hint = f"to have both in one, start in a new output folder and add --project {found[0]} --run-id {found[1]}"
            log.warning("the training logs to run %s/%s, but its checkpoints go to %s: %s", *found, self.run, hint)

    def _put_model_beside(self, pinned: Snapshot) -> None:
        """When the training is finished, make its model a version. A permanent error there doesn't stop the checkpoint."""
        if not (pinned.state and pinned.state.finished):
            return
        try:
            version = self._put_model(pinned)["version"]
        except TransientStoreError:
            raise
        except CkptsyncError as error:
            log.warning("no final model in the store: %s; the checkpoint's own version holds it too", error)
        else:
            log.info("uploaded the final model as %s:%s", version["name"], version["version"])

    def _put_model(self, pinned: Snapshot) -> dict[str, Any]:
        found = final_model.find(pinned, self._spool.output_dir)
        upload = artifact.describe_model(found, self.run, stem=self._stem)
        files = [asdict(file) for file in found.files]
        job = {"op": "model", "run": asdict(self.run), "folder": str(found.folder), "files": files, "upload": asdict(upload)}
        try:
            return self._process.ask(job, on_progress=lambda line: self._note(pinned, line))
        except SnapshotChangedError as error:
            if found.folder == pinned.content:
                raise
            # The pin still holds; the next attempt reads the best checkpoint's folder anew.
            raise TransientStoreError(str(error)) from error

    def _prune(self, name: str, settings: UploadSettings, uploaded: str) -> None:
        """Delete the versions that the settings don't keep. A failure is logged, and the next receipt tries again."""
        job = {"op": "prune", "run": asdict(self.run), "name": name, "policy": asdict(settings.keep), "uploaded": uploaded}
        try:
            gone = self._process.ask(job)["gone"]
        except CkptsyncError as error:
            log.warning("nothing was pruned: %s", error)
            return
        for each in gone:
            self._spool.history.record("pruned", artifact=f"{name}:{each['version']}", step=each["step"])
            log.info("pruned %s:%s, step %s", name, each["version"], each["step"])

    def _note(self, pinned: Snapshot, line: Mapping[str, Any]) -> None:
        self.progress = Progress(pinned, str(line["stage"]), int(line["done"]), int(line["total"]), int(line["moved"]))
        if self.progress.done:
            self.rate = self.progress.done / (time.monotonic() - self.begun)


def _receipt(pinned: Snapshot, answer: Mapping[str, Any], store: str | None) -> Receipt:
    version = answer["version"]
    return Receipt(
        snapshot=pinned.name,
        step=pinned.step,
        saved_at=pinned.saved_at,
        sequence=pinned.sequence,
        artifact=version["qualified"].rpartition(":")[0],
        version=version["version"],
        digest=version["digest"],
        bytes=pinned.bytes,
        files=len(pinned.files),
        seconds=answer["seconds"],
        committed_at=time.time(),
        run_id=pinned.run_id,
        attempt=pinned.attempt,
        rows=pinned.state.rows if pinned.state else Rows(),
        state_digest=pinned.state.digest if pinned.state else "",
        saved_print=layouts.saved_print(pinned.files),
        store=store or "",
    )
