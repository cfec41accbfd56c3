"""Does one thing to a spool again and again, each time killed at a later file event; says what a start then finds.

`python -m tests.unit.upload.spool_crashes FOLDER THING`. Every attempt is a forked process in a fresh output folder, so that one
interpreter does them all. Prints one JSON line an attempt; the last one was not killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckptsync import durable
from ckptsync.checkpoint import Receipt, Snapshot
from ckptsync.errors import PermanentStoreError, SnapshotChangedError
from ckptsync.upload.spool import Spool
from tests.checkpoints import checkpoint_at, make_checkpoint

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree"}


def receipt(pinned: Snapshot) -> Receipt:
    return Receipt(
        pinned.name, pinned.step, pinned.saved_at, pinned.sequence, "me/p/checkpoint-a", "v0", "d", pinned.bytes, 7, 0.0, 0.0
    )


def pin_the_next(spool: Spool, _first: Snapshot, _second: Snapshot) -> None:
    spool.pin(checkpoint_at(spool.output_dir / "checkpoint-3"))


def commit(spool: Spool, first: Snapshot, _second: Snapshot) -> None:
    spool.commit(first, receipt(first))


def supersede(spool: Spool, first: Snapshot, second: Snapshot) -> None:
    spool.supersede([first], second, "behind")


def park(spool: Spool, first: Snapshot, _second: Snapshot) -> None:
    spool.park(first, PermanentStoreError("injected: quota"))


def park_and_unpark(spool: Spool, first: Snapshot, _second: Snapshot) -> None:
    spool.park(first, PermanentStoreError("injected: quota"))
    spool.unpark()


def discard(spool: Spool, first: Snapshot, _second: Snapshot) -> None:
    spool.discard(first)


THINGS: dict[str, Callable[[Spool, Snapshot, Snapshot], None]] = {
    thing.__name__: thing for thing in (pin_the_next, commit, supersede, park, park_and_unpark, discard)
}


def attempt(output_dir: Path, thing: str, limit: int) -> dict[str, Any]:
    """Do it in a process that dies at the `limit`-th event, then start, and tell where each snapshot is."""
    output_dir.mkdir()
    spool = Spool(output_dir)
    spool.prepare()
    first, second = (spool.pin(checkpoint_at(make_checkpoint(output_dir, step))) for step in (1, 2))
    make_checkpoint(output_dir, 3)
    child = os.fork()
    if child == 0:
        die_at(limit)
        THINGS[thing](spool, first, second)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return {"killed": killed, **found(Spool(output_dir))}


def die_at(limit: int) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS:
            seen += 1
            if seen == limit:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def found(spool: Spool) -> dict[str, Any]:
    """What a start finds, and whether what waits is whole. Then the third checkpoint is pinned if it is unknown."""
    spool.prepare()
    third = checkpoint_at(spool.output_dir / "checkpoint-3")
    if not spool.knows(f"{third.name}.{third.fingerprint}"):
        try:
            spool.pin(third)
        except SnapshotChangedError as error:
            raise SystemExit(f"the checkpoint was changed: {error}") from error
    waiting = [*spool.pending(), *(each for each, _ in spool.parked())]
    lines = (spool.root / "history.jsonl").read_text().splitlines()
    left = [path for path in spool.root.rglob("*") if path.name.startswith(".tmp-")]
    return {
        "pending": [each.checkpoint for each in spool.pending()],
        "parked": [each.checkpoint for each, _ in spool.parked()],
        "durable": [each.snapshot.split(".")[0] for each in spool.receipts],
        "let_go": [each["checkpoint"] for each in map(json.loads, lines) if each["event"] in ("superseded", "changed")],
        "whole": all(durable.unchanged(each.content, each.files) for each in waiting),
        "left": [path.name for path in left],
    }


def main() -> None:
    root, thing = Path(sys.argv[1]), sys.argv[2]
    limit, killed = 0, True
    while killed:
        limit += 1
        outcome = attempt(root / f"{thing}-{limit}", thing, limit)
        killed = outcome["killed"]
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
