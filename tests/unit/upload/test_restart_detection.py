"""Whether a checkpoint continues the training, where it can't be read again when that is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ckptsync.checkpoint import Checkpoint
from ckptsync.upload.lineage import Appearance
from ckptsync.upload.quiet_period import QuietFolder
from ckptsync.upload.restart_detection import RestartDetection
from ckptsync.upload.spool import Spool
from tests.checkpoints import checkpoint_at, make_checkpoint


@pytest.fixture
def continuity(tmp_path: Path) -> RestartDetection:
    """A training that has come to step 4."""
    spool = Spool(tmp_path, run_id="r1")
    spool.prepare()
    made = RestartDetection(spool, allow_restart=False)
    made.take_up([])
    first = saved(tmp_path, 4)
    made.advance(spool.pin(first), first.path)
    return made


def saved(output_dir: Path, step: int) -> Checkpoint:
    """A checkpoint with a row for each step up to it, as the Trainer logs them."""
    folder = make_checkpoint(output_dir, step)
    state = json.loads((folder / "trainer_state.json").read_text())
    rows = [{"step": each, "loss": 1 / each} for each in range(1, step + 1)]
    (folder / "trainer_state.json").write_text(json.dumps(state | {"log_history": rows}))
    return checkpoint_at(folder)


def quiet(checkpoint: Checkpoint) -> QuietFolder:
    return QuietFolder(checkpoint.path.parent, checkpoint.name, checkpoint.fingerprint, Appearance.CHANGED)


def test_the_next_save_continues_the_training(tmp_path: Path, continuity: RestartDetection) -> None:
    following = saved(tmp_path, 8)

    assert continuity.accepts(quiet(following), following)


def test_a_save_that_is_deleted_while_it_is_examined_is_no_restart(tmp_path: Path, continuity: RestartDetection) -> None:
    following = saved(tmp_path, 8)
    shutil.rmtree(following.path)

    assert not continuity.accepts(quiet(following), following)
    assert continuity.restarted is None


def test_a_save_that_cannot_be_read_while_it_is_examined_is_no_restart_but_examined_again(
    tmp_path: Path, continuity: RestartDetection
) -> None:
    following = saved(tmp_path, 8)
    content = (following.path / "trainer_state.json").read_bytes()
    (following.path / "trainer_state.json").unlink()

    with pytest.raises(OSError, match="checkpoint-8"):
        continuity.accepts(quiet(following), following)
    (following.path / "trainer_state.json").write_bytes(content)

    assert continuity.restarted is None
    assert continuity.accepts(quiet(following), following)
