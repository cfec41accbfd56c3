"""Whether a checkpoint continues the training, where it can't be read again when that is asked."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ckptsync import layouts
from ckptsync.checkpoint import Checkpoint, Receipt
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


def test_a_durable_save_that_gets_another_file_is_not_saved_again_and_one_with_other_weights_is(
    tmp_path: Path, continuity: RestartDetection
) -> None:
    spool, first = Spool(tmp_path, run_id="r1"), checkpoint_at(tmp_path / "checkpoint-4")
    assert first.verdict.state
    receipt = Receipt(f"{first.name}.{first.fingerprint}", 4, 1.0, 1, "me/p/checkpoint-r1", "v0", "d", 1, 1, 0.0, 1.0)
    digest = first.verdict.state.digest
    spool.receipts.keep(replace(receipt, state_digest=digest, saved_print=layouts.saved_print(first.files)))
    folder = first.path

    (folder / "eval_results.json").write_text("{}")
    assert not continuity.accepts(quiet(checkpoint_at(folder)), checkpoint_at(folder))

    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    os.utime(folder / "trainer_state.json")
    assert continuity.accepts(quiet(checkpoint_at(folder)), checkpoint_at(folder))
