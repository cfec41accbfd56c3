"""The spool against a model, with crashes and starts at any moment."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ckptsync import durable, layouts
from ckptsync.checkpoint import Checkpoint, Receipt, Snapshot, TrainingState, Verdict
from ckptsync.errors import PermanentStoreError
from ckptsync.upload.spool import Spool
from ckptsync.upload.upload_queue import choose, over_limit

MEMORY = Path("/dev/shm")


class SpoolMachine(RuleBasedStateMachine):
    """`queued` is in the order of pinning; `durable` has the names with a receipt, `let_go` those with an event."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="ckptsync-test-", dir=MEMORY if MEMORY.is_dir() else None))
        self.spool = Spool(self.root)
        self.spool.prepare()
        self.saves = 0
        self.queued: list[str] = []
        self.parked: set[str] = set()
        self.durable: set[str] = set()
        self.let_go: set[str] = set()
        self.order: dict[str, int] = {}
        self.contents: dict[str, bytes] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(step=st.integers(1, 4), best=st.booleans())
    def save_and_pin(self, step: int, best: bool) -> None:
        """Each save replaces its files, as safetensors does; what was pinned keeps the old ones."""
        self.saves += 1
        folder = self.root / f"checkpoint-{step}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        content = f"save {self.saves}".encode().ljust(64)
        (folder / "model.safetensors").write_bytes(content)
        # The clock of a file system may stand still for 4 ms.
        os.utime(folder / "model.safetensors", (self.saves, self.saves))
        state = TrainingState(step, 4, best_checkpoint=str(folder) if best else None)
        checkpoint = Checkpoint(folder, step, Verdict("plain", (), True, layouts.list_files(folder), state))
        pinned = self.spool.pin(checkpoint)
        assert pinned.name not in self.order
        self.queued.append(pinned.name)
        self.order[pinned.name] = self.saves
        self.contents[pinned.name] = content

    @rule(step=st.integers(1, 4))
    def rotate(self, step: int) -> None:
        shutil.rmtree(self.root / f"checkpoint-{step}", ignore_errors=True)

    @rule()
    def start_again(self) -> None:
        """The process died between two calls; a new one looks at what is there."""
        self.spool = Spool(self.root)
        self.spool.prepare()

    @rule(keep_all=st.booleans(), crash=st.booleans())
    def upload(self, keep_all: bool, crash: bool) -> None:
        chosen, dropped = choose(self.spool.pending(), keep_all=keep_all)
        if chosen is None:
            assert not self.queued
            return
        self.spool.supersede(dropped, chosen, "behind")
        self.let_go |= {each.name for each in dropped}
        if crash:
            self.spool.receipts.keep(self._receipt(chosen))
            self.start_again()
        else:
            self.spool.commit(chosen, self._receipt(chosen))
        self.durable.add(chosen.name)
        self.queued = [name for name in self.queued if name not in self.let_go | self.durable]

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        pinned = self._any_queued(data)
        self.spool.park(pinned, PermanentStoreError("injected: quota"))
        self.queued.remove(pinned.name)
        self.parked.add(pinned.name)

    @rule()
    def unpark(self) -> None:
        assert set(self.spool.unpark()) == self.parked
        self.queued = sorted([*self.queued, *self.parked], key=self.order.__getitem__)
        self.parked.clear()

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        pinned = self._any_queued(data)
        self.spool.discard(pinned)
        self.queued.remove(pinned.name)
        self.let_go.add(pinned.name)

    @rule(limit=st.integers(0, 300))
    def keep_within_a_limit(self, limit: int) -> None:
        pending = self.spool.pending()
        dropped = over_limit(pending, limit)
        if dropped:
            self.spool.supersede(dropped, pending[-1], "spool limit")
        self.let_go |= {each.name for each in dropped}
        self.queued = self.queued[len(dropped) :]

    @invariant()
    def the_queue_is_in_the_order_of_saving(self) -> None:
        assert [each.name for each in self.spool.pending()] == self.queued

    @invariant()
    def the_parked_are_kept_with_their_reason(self) -> None:
        assert {each.name for each, reason in self.spool.parked() if reason == "injected: quota"} == self.parked

    @invariant()
    def receipts_come_from_commits_alone(self) -> None:
        assert {each.snapshot for each in self.spool.receipts} == self.durable

    @invariant()
    def nothing_pinned_is_lost_without_an_event(self) -> None:
        path = self.spool.root / "history.jsonl"
        events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        gone = {f"{each['checkpoint']}.{each['print']}" for each in events if each["event"] in ("superseded", "changed")}
        assert gone == self.let_go
        assert set(self.order) == set(self.queued) | self.parked | self.durable | self.let_go

    @invariant()
    def what_waits_holds_its_bytes(self) -> None:
        for each in [*self.spool.pending(), *(each for each, _ in self.spool.parked())]:
            assert durable.unchanged(each.content, each.files)
            assert (each.content / "model.safetensors").read_bytes() == self.contents[each.name]

    @invariant()
    def what_is_here_or_durable_is_known_and_what_was_let_go_is_not(self) -> None:
        assert all(self.spool.knows(name) for name in [*self.queued, *self.parked, *self.durable])
        assert not any(self.spool.knows(name) for name in self.let_go)

    def _any_queued(self, data: st.DataObject) -> Snapshot:
        return data.draw(st.sampled_from(self.spool.pending()))

    def _receipt(self, pinned: Snapshot) -> Receipt:
        return Receipt(
            pinned.name, pinned.step, pinned.saved_at, pinned.sequence, "me/p/checkpoint-a", "v0", "d", pinned.bytes, 1, 0.0, 0.0
        )


TestSpool = SpoolMachine.TestCase
TestSpool.settings = settings(max_examples=100, stateful_step_count=25)
