"""A watcher or an upload process that dies at any file event leaves what the next start uploads, once."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ckptsync.checkpoint import Run
from ckptsync.store.retrying import Patience
from ckptsync.upload.child import PUBLISH
from ckptsync.upload.settings import UploadSettings
from ckptsync.upload.spool import Spool
from ckptsync.upload.uploader import Uploader
from tests import evidence
from tests.checkpoints import make_checkpoint
from tests.crash import deaths
from tests.crash.conftest import Sweep
from tests.crash.test_dying_while_pinning import pin
from tests.server_process import ServerProcess

QUICKLY = UploadSettings(patience=Patience(first=0.1, longest=0.5, give_up_after=30.0))
KEEPING_ALL = replace(QUICKLY, keep_all=True)
ONCE = UploadSettings(patience=Patience(first=0.1, longest=0.1, give_up_after=0.0))


def upload(
    output_dir: Path, server: ServerProcess, *, settings: UploadSettings = QUICKLY, command: tuple[str, ...] = PUBLISH
) -> None:
    """What a start of the watcher does with a snapshot that waits."""
    os.chdir(Path(__file__).parents[2])
    spool = Spool(output_dir)
    spool.prepare()
    run = Run(output_dir.name, "tests", "local")
    environment = {**os.environ, **server.environment, "HOME": str(output_dir.parent)}
    uploader = Uploader(run, spool, environment, settings, threading.Event(), stem=run.run_id, command=command)
    uploader.drain()
    uploader.close()


def mortal(output_dir: Path, n: int) -> tuple[str, ...]:
    """The upload process that dies at its n-th file event."""
    return (sys.executable, "-m", "tests.crash.publishing", str(output_dir), str(n))


def fresh(tmp_path: Path, name: str) -> Path:
    """A folder with one snapshot that waits."""
    make_checkpoint(tmp_path / name, 10, content=name)
    pin(tmp_path / name)
    return tmp_path / name


def damage(output_dir: Path, server: ServerProcess) -> evidence.Damage:
    saved = {"checkpoint-10": evidence.digests(output_dir / "checkpoint-10")}
    kept = evidence.versions(server, f"checkpoint-{output_dir.name}")
    receipts = [receipt.version for receipt in Spool(output_dir).receipts]
    assert receipts == [each.version for each in kept]
    return evidence.damage(kept, saved, wanted=saved)


def sweep(
    name: str, events: int, points: Mapping[int, Path], die_and_start_again: Callable[[Path, int], None], server: ServerProcess
) -> Sweep:
    """Die at each point in a folder of its own, and look at what is there after the next start."""
    before = {n: evidence.look(output_dir) for n, output_dir in points.items()}
    found = Sweep(name, events)

    deaths.side_by_side([partial(die_and_start_again, output_dir, n) for n, output_dir in points.items()])

    for n, output_dir in points.items():
        found.add(damage(output_dir, server), len(evidence.leftovers(output_dir)))
        assert evidence.look(output_dir) == before[n]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("most", [pytest.param(5, id="some"), pytest.param(10**6, id="all")])
@pytest.mark.timeout(900)
def test_a_watcher_that_died_in_an_upload_finishes_it_at_the_next_start(tmp_path: Path, server: ServerProcess, most: int) -> None:
    counted = fresh(tmp_path, f"w{most}-counted")
    events = deaths.count_events(partial(upload, counted, server), tmp_path)

    def die_and_start_again(output_dir: Path, n: int) -> None:
        assert deaths.die_doing(partial(upload, output_dir, server), tmp_path, n)
        upload(output_dir, server)

    points = {n: fresh(tmp_path, f"w{most}-{n}") for n in deaths.spread(events, most)}
    sweep("upload, the watcher", events, points, die_and_start_again, server).tell()


@pytest.mark.slow
@pytest.mark.parametrize("most", [pytest.param(4, id="some"), pytest.param(10**6, id="all")])
@pytest.mark.timeout(900)
def test_an_upload_process_that_died_is_followed_by_another(tmp_path: Path, server: ServerProcess, most: int) -> None:
    counted = fresh(tmp_path, f"c{most}-counted")
    assert deaths.in_fork(partial(upload, counted, server, command=mortal(counted, 0))) == 0
    events = counted.with_name(f"{counted.name}.events").stat().st_size

    def die_and_start_again(output_dir: Path, n: int) -> None:
        upload(output_dir, server, settings=ONCE, command=mortal(output_dir, n))
        upload(output_dir, server)

    points = {n: fresh(tmp_path, f"c{most}-{n}") for n in deaths.spread(events, most)}
    sweep("upload, its child process", events, points, die_and_start_again, server).tell()
