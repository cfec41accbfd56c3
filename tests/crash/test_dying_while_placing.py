"""A resume that dies at any file event is completed by the next one, and nothing in the folder is lost or torn."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import wandb

from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.restore.resume import Resume
from ckptsync.store.wandb_store import WandbStore
from ckptsync.upload.spool import Spool
from tests import evidence
from tests.checkpoints import make_checkpoint
from tests.crash import deaths
from tests.crash.conftest import Sweep
from tests.crash.test_dying_while_pinning import pin
from tests.crash.test_dying_while_uploading import upload
from tests.server_process import ServerProcess

# Imported here once, not in every fork.
assert wandb.__version__
RUN = Run("placed", "tests", "local")


def place(output_dir: Path, server: ServerProcess, private: Path) -> None:
    """Bring the newest checkpoint of the run into a folder."""
    store = WandbStore(Connection(server.url, server.api_key), RUN, private)
    Resume(store, RUN, output_dir, progress=lambda _done, _total: None).place()
    store.close()


def fresh(folder: Path) -> Path:
    """An output folder in which a torn save lies that has a higher number."""
    make_checkpoint(folder, 20, without=["trainer_state.json", "rng_state.pth"])
    return folder


def damage(output_dir: Path, saved: evidence.Digests, torn_save: evidence.Digests) -> evidence.Damage:
    """The checkpoint is in its place, and what was in the way lies aside, all of it."""
    placed = {path.name: evidence.digests(path) for path in output_dir.glob("checkpoint-*")}
    aside = [evidence.digests(path) for path in (output_dir / ".ckptsync" / "torn").glob("*")]
    return evidence.Damage(
        lost=tuple(name for name, there in (("the version", "checkpoint-10" in placed), ("torn save", aside)) if not there),
        torn=tuple(name for name, files in placed.items() if files != saved),
        duplicate=tuple(str(each) for each in aside if each != torn_save) + tuple(map(str, aside[1:])),
    )


@pytest.mark.slow
@pytest.mark.parametrize("most", [pytest.param(2, id="some"), pytest.param(10**6, id="all")])
@pytest.mark.timeout(900)
def test_a_resume_that_was_cut_short_is_completed_by_the_next(tmp_path: Path, server: ServerProcess, most: int) -> None:
    source = tmp_path / "placed"
    saved = evidence.digests(make_checkpoint(source, 10, content=f"placed {most}"))
    pin(source)
    assert deaths.in_fork(partial(upload, source, server)) == 0
    versions = evidence.versions(server, f"checkpoint-{RUN.run_id}")
    folders = tmp_path / "into"
    counted = fresh(folders / "counted")
    events = deaths.count_events(partial(place, counted, server, tmp_path / "private"), folders)
    found = Sweep("place", events)
    points = {n: fresh(folders / f"death-{n}") for n in deaths.spread(events, most)}
    torn_saves = {n: evidence.digests(output_dir / "checkpoint-20") for n, output_dir in points.items()}

    def die_and_start_again(output_dir: Path, n: int) -> None:
        # Threads bring the files, so that one death in many comes to its end before.
        deaths.die_doing(partial(place, output_dir, server, tmp_path / f"private-{n}"), folders, n)
        place(output_dir, server, tmp_path / f"private-{n}")
        # The watcher that every resume starts sweeps under its lock what a resume may not.
        Spool(output_dir).prepare()

    deaths.side_by_side([partial(die_and_start_again, output_dir, n) for n, output_dir in points.items()])

    for n, output_dir in points.items():
        found.add(damage(output_dir, saved, torn_saves[n]), len(evidence.leftovers(output_dir)))
    assert evidence.versions(server, f"checkpoint-{RUN.run_id}") == versions
    found.tell()
