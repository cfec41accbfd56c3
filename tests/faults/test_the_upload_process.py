"""The upload process has no life of its own: it ends with the watcher, and signals to everybody don't end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from ckptsync import processes
from ckptsync.checkpoint import Run
from ckptsync.errors import TransientStoreError
from ckptsync.upload.child import PUBLISH, Child
from ckptsync.upload.spool import Spool
from tests.checkpoints import checkpoint_at, make_checkpoint
from tests.faults.conftest import Followed, Note, mounted
from tests.faults.test_the_store_fails import FILES, rule
from tests.integration.conftest import wait_for
from tests.server_process import ServerProcess


def uploading(followed: Followed) -> list[int]:
    """The upload process and wandb-core, once an upload is under way."""
    wait_for(lambda: any(followed.server.fault_hits()), what="an upload under way")
    return processes.descendants(followed.pid)


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if processes.start_time(pid) is not None]


def test_an_upload_process_dies_with_its_watcher_and_the_next_watchers_version_stays(
    tmp_path: Path, server: ServerProcess, note: Note
) -> None:
    followed = Followed(tmp_path, server, "orphan")
    followed.start()
    server.faults([rule(FILES, None, delay=20)])
    name = followed.save()
    theirs = uploading(followed)

    followed.kill_watcher()
    wait_for(lambda: not living(theirs), seconds=15, what="the end of the upload process")
    server.faults([])
    followed.start()
    followed.durable(name)
    followed.kill()

    note("kill -9 of the watcher alone in an upload", "its upload process died too; uploaded by the next", followed.damage())


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_to_every_process_of_the_job_does_not_end_the_current_upload(
    tmp_path: Path, server: ServerProcess, note: Note, number: signal.Signals
) -> None:
    followed = Followed(tmp_path, server, f"scancel-{number}")
    followed.start()
    server.faults([rule(FILES, None, throttle=50_000)])
    name = followed.save(size=200_000)

    for pid in (*uploading(followed), followed.pid):
        os.kill(pid, number)
    followed.durable(name)

    assert "failed, retrying" not in followed.said()
    note(f"{number.name} to every process", "the current upload was finished", followed.damage())
    followed.kill()


def test_a_projects_own_modules_are_not_imported_by_the_upload_process(tmp_path: Path, server: ServerProcess) -> None:
    for name in ("secrets", "types", "packaging"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the project's code ran')\n")
    hello = '{"run": {"run_id": "a", "project": "p", "entity": null}, "private": "' + str(tmp_path / "private") + '"}\n'
    environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.api_key}

    done = subprocess.run(PUBLISH, input=hello, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert (done.returncode, set(events) - {"progress"}) == (0, set()), done.stderr
    assert PUBLISH[0] == sys.executable


def test_a_start_that_takes_long_shows_progress(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("import time\ntime.sleep(2.5)\nraise SystemExit('injected: it was slow')\n")
    hello = '{"run": {"run_id": "a", "project": "p", "entity": null}, "private": "' + str(tmp_path / "private") + '"}\n'
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "x" * 40}

    done = subprocess.run(PUBLISH, input=hello, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    lines = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr, lines) == (1, "injected: it was slow\n", ["progress", "progress"])


def test_on_a_full_disk_the_answer_is_one_sentence_without_the_tracebacks_of_the_clients_own_log(
    tmp_path: Path, server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_checkpoint(tmp_path / "out", 5)
    spool = Spool(tmp_path / "out")
    spool.prepare()
    pinned = spool.pin(checkpoint_at(made))
    run = asdict(Run("full", "tests", "local"))
    upload = {"name": "checkpoint-full", "aliases": [], "metadata": {}}
    job = {"op": "upload", "run": run, "snapshot": str(pinned.directory), "upload": upload}
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=3m", "tmpfs") as small:
        child = Child(Run(**run), {**os.environ, **server.environment}, small / "private")
        child.ask({"op": "check", "run": run}, stall=lambda: 60.0, on_progress=lambda _: None)
        with (small / "filled").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass

        with pytest.raises(TransientStoreError, match=r"the upload of checkpoint-5.* failed: .*No space left on device"):
            child.ask(job, stall=lambda: 60.0, on_progress=lambda _: None)

        child.close()
    assert capsys.readouterr().err == ""
