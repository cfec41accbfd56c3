"""The watcher beside a training is started again when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptsync.checkpoint import Run
from ckptsync.job.watch_thread import WatchThread
from ckptsync.upload.daemon import Daemon, Watch
from ckptsync.upload.settings import UploadSettings
from ckptsync.upload.stop import Stop
from tests.checkpoints import make_checkpoint
from tests.integration.conftest import wait_for


def test_a_watcher_that_fails_is_started_again_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    daemon = Daemon(Watch(tmp_path, Run("abc", "p", "me"), {}, "abc", quiet=0.0, settings=UploadSettings(mode="offline")), Stop())
    failures = [RuntimeError("injected: a bug")]

    def every_turn() -> None:
        if failures:
            raise failures.pop()

    with WatchThread(daemon, every_turn, pause=0.1).beside():
        wait_for(lambda: not failures, what="the failure")
        make_checkpoint(tmp_path, 5)
        wait_for(lambda: daemon.spool.waiting(), what="the pin")

    assert "the watcher failed, the training continues: RuntimeError: injected: a bug" in caplog.text
    assert [each.step for each in daemon.spool.pending()] == [5]
