"""A prune that dies between two requests has deleted nothing that has to stay, and the next one deletes the rest."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import wandb

from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.store.wandb_store import WandbStore
from ckptsync.upload import retention
from ckptsync.upload.retention import Retention
from ckptsync.upload.spool import Spool
from tests import evidence
from tests.checkpoints import checkpoint_at, make_checkpoint
from tests.crash import deaths
from tests.crash.conftest import Sweep
from tests.crash.test_dying_while_uploading import KEEPING_ALL, upload
from tests.integration.conftest import wait_for
from tests.server_process import ServerProcess

# Imported here once, not in every fork.
assert wandb.__version__
STEPS = (10, 20, 30)
KEPT = ("checkpoint-20", "checkpoint-30")
POLICY = Retention(last=2)


def prune(output_dir: Path, server: ServerProcess) -> None:
    """Delete all but the newest two versions of a run."""
    run = Run(output_dir.name, "tests", "local")
    store = WandbStore(Connection(server.url, server.api_key), run, output_dir.parent / f"{output_dir.name}-private")
    versions = store.versions(f"checkpoint-{output_dir.name}")
    retention.sweep(store, retention.plan(store, versions, POLICY, time.time()))
    store.close()


def uploaded(output_dir: Path, server: ServerProcess) -> Path:
    """A run with three versions."""
    spool = Spool(output_dir)
    for step in STEPS:
        make_checkpoint(output_dir, step, content=output_dir.name)
    spool.prepare()
    for step in STEPS:
        spool.pin(checkpoint_at(output_dir / f"checkpoint-{step}"))
    upload(output_dir, server, settings=KEEPING_ALL)
    return output_dir


def die_at_request(output_dir: Path, server: ServerProcess, n: int) -> None:
    """Prune, and be killed while the n-th request waits for its answer. The server never does what was asked then.

    On a busy machine the prune that was counted may have asked something twice: this one has ended before then.
    """
    server.faults([{"match": {"path": "/graphql"}, "skip": n - 1, "count": 1, "action": {"delay": 5, "drop": "before"}}])
    pruning = deaths.fork(partial(prune, output_dir, server))
    ended = partial(os.waitid, os.P_PID, pruning, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    wait_for(lambda: any(server.fault_hits()) or ended() is not None, what=f"request {n}")
    os.kill(pruning, signal.SIGKILL)
    os.waitpid(pruning, 0)
    server.faults([])


@pytest.mark.slow
@pytest.mark.parametrize("most", [pytest.param(2, id="some"), pytest.param(10**6, id="all")])
@pytest.mark.timeout(900)
def test_a_prune_that_was_cut_short_deleted_nothing_that_stays(tmp_path: Path, server: ServerProcess, most: int) -> None:
    counted = tmp_path / f"p{most}-counted"
    assert deaths.in_fork(partial(uploaded, counted, server)) == 0
    before = len(server.requests())
    assert deaths.in_fork(partial(prune, counted, server)) == 0
    events = sum(each["path"] == "/graphql" for each in server.requests()[before:])
    found = Sweep("prune, at its requests", events)
    points = {n: tmp_path / f"p{most}-{n}" for n in deaths.spread(events, most)}
    deaths.side_by_side([partial(uploaded, output_dir, server) for output_dir in points.values()])

    for n, output_dir in points.items():
        die_at_request(output_dir, server, n)
        assert deaths.in_fork(partial(prune, output_dir, server)) == 0

        saves = {f"checkpoint-{step}": evidence.digests(output_dir / f"checkpoint-{step}") for step in STEPS}
        kept = evidence.versions(server, f"checkpoint-{output_dir.name}")
        found.add(evidence.damage(kept, saves, wanted=KEPT), len(kept) - len(KEPT))
    found.tell()
