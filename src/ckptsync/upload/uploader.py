"""Empties the spool: one snapshot after the other through the child process, trying again where that can help.

Runs in a thread of its own beside the watching loop and touches the store through the child only.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ckptsync import durable, record
from ckptsync.checkpoint import Receipt, Run, Snapshot
from ckptsync.errors import CkptsyncError, SnapshotChangedError, TransientStoreError
from ckptsync.layouts import final_model
from ckptsync.store import artifact
from ckptsync.store.retrying import FOR_EVER, Patience, retry
from ckptsync.upload import spool
from ckptsync.upload.child import PUBLISH, Child
from ckptsync.upload.retention import Retention

if TYPE_CHECKING:
    from ckptsync.upload.throttle import Throttle

log = logging.getLogger(__name__)

PASSED_STEP = 64 * 2**10
"""Bytes that have to get through a limit to count as progress."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How uploads go. `limit` is in bytes, `stall` in seconds without a sign of progress.

    `keep` says what stays in the store after each upload. With `only_model` no checkpoint goes out, only the final model. `mode`
    is online; offline, where all waits for a later start; or disabled, where nothing is pinned either. With `yielding` the
    uploads take only what processor and disk time the training leaves, and `max_rate` is how many bytes a second they may send.
    """

    keep_all: bool = False
    limit: int | None = None
    stall: float = 300.0
    patience: Patience = FOR_EVER
    linger: float = 30.0
    keep: Retention = Retention()  # noqa: RUF009 - frozen
    only_model: bool = False
    mode: str = "online"
    yielding: bool = True
    max_rate: int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the upload in hand is, in bytes. `moved` grows by anything that shows life, also while files are hashed."""

    snapshot: Snapshot
    stage: str
    done: int
    total: int
    moved: int


class Uploader:
    """Takes snapshots out of the spool until it is told to stop.

    `stop` ends every wait between two attempts; the attempt in hand goes on to its end.
    """

    def __init__(
        self,
        run: Run,
        store: spool.Spool,
        environment: Mapping[str, str],
        policy: Policy,
        stop: threading.Event,
        *,
        stem: str,
        command: Sequence[str] = PUBLISH,
    ) -> None:
        self.run = run
        self.policy = policy
        self.progress: Progress | None = None
        self.rate: float | None = None
        self.durable = store.newest_receipt()
        self.last_error: CkptsyncError | None = None
        self.changed: queue.SimpleQueue[str] = queue.SimpleQueue()
        """Names of checkpoints whose pins no longer held what was accepted: whoever watches has to look at them again."""
        self._wake = threading.Event()
        self._finishing = False
        self._expecting = False
        self._spool = store
        self._environment = environment
        self._stop = stop
        self._stem = stem
        self._command = command
        self._deadline: float | None = None
        self._hurried_at: float | None = None
        self._child: Child | None = None
        self._throttle: Throttle | None = None
        self._choosing = threading.Lock()
        self._in_hand: Snapshot | None = None
        self._announced = ""
        self._begun = 0.0
        self._told_others = False
        self._told_elsewhere = False

    def check(self) -> Run:
        """The run with its entity, once the store accepted the key. One attempt."""
        answer = self._ask({"op": "check", "run": asdict(self.run)}, told=lambda _: None)
        self.run = Run(**answer["run"])
        return self.run

    def serve(self) -> None:
        """Upload whatever is pinned until `finish` is called and nothing waits; the body of the uploader's thread.

        After a stop the newest goes out once more, or with `keep_all` no further one.
        """
        while not self._finishing:
            if self._expecting:
                self._expecting = False
                with contextlib.suppress(CkptsyncError, OSError):
                    self._start_child()
            self.drain()
            if not self._woken(self.policy.linger):
                self.close()
                self._woken(None)
        self.drain()
        self.close()

    def expect(self) -> None:
        """Say that something will soon be pinned: a process that has imported the client by then saves the upload a second."""
        if self._child is None and self.policy.mode == "online":
            self._expecting = True
            self._wake.set()

    @property
    def child_is_there(self) -> bool:
        """Whether a process that uploads runs at this moment."""
        return self._child is not None

    def wake(self) -> None:
        """Say that something was pinned."""
        self._wake.set()

    def hurry(self, seconds: float | None) -> None:
        """Say that the machine goes away in so many seconds, None where nobody knows: from now on the newest goes first."""
        self._hurried_at = time.time()
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def give_way(self) -> bool:
        """In a hurry: end the upload in hand where the newest checkpoint fits in the time that is left, but not behind it.

        Without a measured rate nothing is known, and what is under way goes on: something durable is better than nothing.
        """
        in_hand, known = self._in_hand, self.durable
        # What was measured with a limit says nothing of the line without it.
        if in_hand is None or self._deadline is None or known is None or known.seconds <= 0 or self.policy.max_rate:
            return False
        newest = max(self._spool.pending(), key=lambda each: each.sequence, default=in_hand)
        rate, now = known.bytes / known.seconds, time.monotonic()
        rest = spool.rest_of_upload(in_hand.bytes / rate, now - self._begun)
        if newest.name == in_hand.name or not newest.bytes / rate <= self._deadline - now < newest.bytes / rate + rest:
            return False
        log.warning("the upload of %s gives way: behind it %s would come too late", in_hand.checkpoint, newest.checkpoint)
        self.kill()
        return True

    def pace(self) -> tuple[int, float] | None:
        """Bytes and seconds of the last upload, or of the first one once a quarter of it is through; None where nobody knows.

        Not under a limit, which is lifted at the notice: what the line can do then is not known.
        """
        known, progress, rate = self.durable, self.progress, self.rate
        if self.policy.max_rate:
            return None
        if known is not None and known.seconds > 0:
            return known.bytes, known.seconds
        if progress and rate and progress.done * 4 > progress.total:
            return progress.total, progress.total / rate
        return None

    def finish(self) -> None:
        """Say that nothing will be pinned any more."""
        self._finishing = True
        self._wake.set()

    def drain(self) -> bool:
        """Upload until nothing waits, or a stop ends it. False when the store stayed away for longer than the patience allows."""
        if self.policy.mode != "online":
            self._next()
            self._in_hand = None
            return True
        try:
            while not self._over() and retry(
                self.upload_next,
                what="upload",
                patience=self.policy.patience,
                stop=self._stop,
                hurried=lambda: self._hurried_at is not None,
            ):
                pass
        except TransientStoreError as error:
            self.last_error = error
            return False
        return True

    def _over(self) -> bool:
        """Whether a stop leaves the rest for the next start. Without `keep_all` the newest still goes."""
        return self._stop.is_set() and self.policy.keep_all and self._hurried_at is None

    def upload_next(self) -> bool:
        """Make the next snapshot durable, or get it out of the way for good; False when none waits.

        Every attempt chooses anew: what came in while the store was away may supersede what was tried before. Raises
        TransientStoreError, with everything still in the queue.
        """
        try:
            pinned = self._next()
            if pinned is None:
                return False
            try:
                self._deal_with(pinned)
            finally:
                self._in_hand = None
        except OSError as error:
            # A full disk takes no receipt. It must not end the thread: there may be room again.
            raise TransientStoreError(f"the queue cannot be written to: {error}") from error
        return True

    def _deal_with(self, pinned: Snapshot) -> None:
        """Upload one snapshot, or throw it away where it changed, or park it where only a person can help."""
        try:
            self._attempt(pinned)
        except TransientStoreError:
            raise
        except SnapshotChangedError as error:
            log.warning("%s; it is taken again", error)
            self._spool.discard(pinned)
            self.changed.put(pinned.checkpoint)
        except CkptsyncError as error:
            self.last_error = error
            self._spool.park(pinned, error)
            log.error("parked %s: %s. %s", pinned.name, error, error.hint)

    def _woken(self, seconds: float | None) -> bool:
        woken = self._wake.wait(seconds)
        # Not after a time-out: a wake-up, or the word to finish, that came just then would be lost.
        if woken:
            self._wake.clear()
        return woken

    def _next(self) -> Snapshot | None:
        """What goes next. Drops what the policy lets go, each with an event."""
        self.trim()
        with self._choosing:
            pending = self._spool.pending()
            chosen, superseded = spool.choose(pending, keep_all=self.policy.keep_all, hurry=self._hurried_at is not None)
            self._in_hand = chosen
        if superseded:
            self._spool.supersede(superseded, pending[-1], "behind")
            log.info("superseded by %s: %s", pending[-1].name, ", ".join(each.name for each in superseded))
        return chosen

    def trim(self) -> None:
        """Let the oldest go where more waits than the policy allows. To be called whenever something was pinned.

        The uploader itself comes to it only between two attempts, which may be hours apart.
        """
        if self.policy.limit is None:
            return
        with self._choosing:
            pending = self._spool.pending()
            for dropped in spool.over_limit(pending, self.policy.limit, in_hand=self._in_hand):
                self._spool.supersede([dropped], pending[-1], "spool limit")
                log.warning("dropped from the queue to keep within the spool limit: %s", dropped.name)

    def close(self) -> None:
        """End the child, gently."""
        if self._child:
            self._child.close()
            self._child = None
            durable.remove_tree(self._spool.root / "wandb")
        if self._throttle:
            self._throttle.close()
            self._throttle = None

    def kill(self) -> None:
        """End the child at once: the upload in hand is lost, its snapshot is not."""
        child = self._child
        if child:
            child.kill()

    def _attempt(self, pinned: Snapshot) -> None:
        if pinned.name != self._announced:
            # Not again with every attempt: a store may be away for days.
            self._announced = pinned.name
            log.info("uploading %s: %d files, %d bytes", pinned.name, len(pinned.files), pinned.bytes)
        self._begun = time.monotonic()
        try:
            if self.policy.only_model:
                answer = self._put_model(pinned)
            else:
                answer = self._put(pinned)
                # Before the pin is let go: it holds the files of the model too.
                self._put_model_beside(pinned)
        finally:
            self.progress = None
        receipt = _receipt(pinned, answer)
        self._spool.commit(pinned, receipt)
        self.durable = spool.newest([*filter(None, [self.durable]), receipt])
        self.rate = receipt.bytes / receipt.seconds if receipt.seconds else None
        self.last_error = None
        name = receipt.artifact.rpartition("/")[2]
        log.info("durable %s as %s:%s in %.1f s", pinned.name, name, receipt.version, receipt.seconds)
        if not answer["attached"]:
            log.warning("run %s is not on the server yet: %s stays with the run ckptsync-%s", self.run, name, self.run.run_id)
        self._prune(name)

    def _put(self, pinned: Snapshot) -> dict[str, Any]:
        preempted = self._spool.preempted(pinned.checkpoint, pinned.fingerprint)
        preempted |= self._hurried_at is not None and pinned.saved_at >= self._hurried_at
        known = record.read(self._spool.output_dir)
        self._tell_elsewhere(known)
        upload = artifact.describe(pinned, self.run, known, stem=self._stem, preempted=preempted)
        newest = self.durable
        if newest and newest.sequence > pinned.sequence:
            upload = replace(upload, latest=newest.version)
        job = {"op": "upload", "run": asdict(self.run), "snapshot": str(pinned.directory), "upload": asdict(upload)}
        answer = self._ask(job, told=lambda line: self._note(pinned, line))
        if answer.get("others") and not self._told_others:
            self._told_others = True
            hint = "start the training with WANDB_LOG_MODEL=false, and it no longer waits for that"
            log.warning("HF's WandbCallback uploads these checkpoints too, as %s: %s", answer["others"], hint)
        return answer

    def _tell_elsewhere(self, known: record.Record) -> None:
        """Once, where the training's own wandb.init names another run than the one that its checkpoints go to."""
        found = (known.text("project") or self.run.project, known.text("run_id") or self.run.run_id)
        if found != (self.run.project, self.run.run_id) and not self._told_elsewhere:
            self._told_elsewhere = True
            flags = f"--project {found[0]} --run-id {found[1]}"
            log.warning("the training logs to run %s/%s, its checkpoints go to %s: give %s", *found, self.run, flags)

    def _put_model_beside(self, pinned: Snapshot) -> None:
        """When the training is finished, make its model a version. What stops that for good doesn't stop the checkpoint."""
        if not (pinned.state and pinned.state.finished):
            return
        try:
            version = self._put_model(pinned)["version"]
        except TransientStoreError:
            raise
        except CkptsyncError as error:
            log.warning("no final model in the store: %s; the checkpoint's own version holds it too", error)
        else:
            log.info("the final model is %s:%s", version["name"], version["version"])

    def _put_model(self, pinned: Snapshot) -> dict[str, Any]:
        found = final_model.find(pinned, self._spool.output_dir)
        upload = artifact.describe_model(found, self.run, stem=self._stem)
        files = [asdict(file) for file in found.files]
        job = {"op": "model", "run": asdict(self.run), "folder": str(found.folder), "files": files, "upload": asdict(upload)}
        try:
            return self._ask(job, told=lambda line: self._note(pinned, line))
        except SnapshotChangedError as error:
            if found.folder == pinned.content:
                raise
            # The pin still holds; the next try looks anew at what lies in the best checkpoint's folder.
            raise TransientStoreError(str(error)) from error

    def _prune(self, name: str) -> None:
        """After a receipt: let go what the policy doesn't keep. A failure is told, and the next receipt tries again."""
        if not self.policy.keep or self._hurried_at is not None:
            return
        job = {"op": "prune", "run": asdict(self.run), "name": name, "policy": asdict(self.policy.keep)}
        try:
            gone = self._ask(job, told=lambda _: None)["gone"]
        except CkptsyncError as error:
            log.warning("nothing was pruned: %s", error)
            return
        for each in gone:
            self._spool.record("pruned", artifact=f"{name}:{each['version']}", step=each["step"])
            log.info("pruned %s:%s, step %s", name, each["version"], each["step"])

    def _ask(self, job: Mapping[str, Any], *, told: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        child = self._start_child()
        try:
            return child.ask(job, stall=self.policy.stall, told=told, passed=self._passed)
        except TransientStoreError:
            # A fresh process: whatever state the client was left in goes with the old one.
            child.kill()
            self._child = None
            raise

    def _start_child(self) -> Child:
        """The process that uploads, started where there is none. Raises TransientStoreError."""
        if self._child and self._throttle is None and self.policy.max_rate and self._hurried_at is None:
            # The limit was set after it had been started: the next one goes through it.
            self.close()
        if self._child is None:
            private = self._spool.root / "wandb"
            durable.remove_tree(private)
            # When the machine is about to go, the upload comes first.
            yielding = self.policy.yielding and self._hurried_at is None
            environment = {**self._environment, **self._limited()}
            self._child = Child(self.run, environment, private, yielding=yielding, command=self._command)
        return self._child

    def _limited(self) -> dict[str, str]:
        """What the child's environment needs to keep within the rate; a hurry lifts the limit of an upload in hand too."""
        if self._throttle is None and self.policy.max_rate and self._hurried_at is None:
            from ckptsync.upload.throttle import Throttle

            try:
                self._throttle = Throttle(self._max_rate, self._environment).start()
            except OSError as error:
                raise TransientStoreError(f"the limit on uploads cannot be set up: {error}") from error
        return self._throttle.environment() if self._throttle else {}

    def _passed(self) -> int:
        """What a limit let out, in steps that the client's heartbeats don't make."""
        return self._throttle.passed // PASSED_STEP if self._throttle else 0

    def _max_rate(self) -> float | None:
        return self.policy.max_rate if self._hurried_at is None else None

    def _note(self, pinned: Snapshot, line: Mapping[str, Any]) -> None:
        self.progress = Progress(pinned, str(line["stage"]), int(line["done"]), int(line["total"]), int(line["moved"]))
        if self.progress.done:
            self.rate = self.progress.done / (time.monotonic() - self._begun)


def _receipt(pinned: Snapshot, answer: Mapping[str, Any]) -> Receipt:
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
    )
