"""What is known of a save decides where its files alone would decide wrongly: clocks, and the number of ranks."""

from __future__ import annotations

import enum
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

from ckptsync import record
from ckptsync.restore import sources
from ckptsync.trainer import marker
from ckptsync.upload.spool import Spool
from ckptsync.upload.validation import validate
from tests.checkpoints import make_checkpoint


def with_a_late_shard(output_dir: Path) -> Path:
    """A save of two nodes, of which one's clock is a second ahead."""
    folder = make_checkpoint(output_dir, 10, world_size=2)
    written = (folder / "trainer_state.json").stat().st_mtime
    os.utime(folder / "model.safetensors", (written + 1, written + 1))
    return folder


def test_a_marker_with_the_exact_print_outweighs_the_clocks_of_two_nodes(tmp_path: Path) -> None:
    folder = with_a_late_shard(tmp_path)
    without = validate(folder, Spool(tmp_path))

    marker.write(tmp_path, 10, world_size=2)

    assert not without.complete
    assert validate(folder, Spool(tmp_path)).complete
    assert [each.step for each in sources.local_checkpoints(tmp_path)[0]] == [10]


def test_a_marker_of_another_save_of_the_step_proves_nothing(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 10, world_size=2)
    marker.write(tmp_path, 10, world_size=2)

    assert not validate(with_a_late_shard(tmp_path), Spool(tmp_path)).complete


def test_checkpoints_of_an_earlier_attempt_are_validated_by_their_own_world(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 10, world_size=2)
    record.begin_attempt(tmp_path, resumed_step=10)
    record.update(tmp_path, world_size=4)

    later = make_checkpoint(tmp_path, 20, world_size=2)

    assert validate(folder, Spool(tmp_path)).complete
    assert not validate(later, Spool(tmp_path)).complete


def test_a_single_process_that_follows_several_saves_complete_checkpoints(tmp_path: Path) -> None:
    record.update(tmp_path, world_size=2)

    assert validate(make_checkpoint(tmp_path, 10), Spool(tmp_path)).complete
    assert not validate(make_checkpoint(tmp_path, 20, without=["optimizer.pt"]), Spool(tmp_path)).complete


class Strategy(enum.Enum):
    """An enum as TrainingArguments has several."""

    STEPS = "steps"


class As3112(pickle.Pickler):
    """Pickles enums as Python 3.11.2 does: getattr(class, name)."""

    def reducer_override(self, value: Any) -> Any:
        return (getattr, (Strategy, value.name)) if isinstance(value, Strategy) else NotImplemented


def test_enums_that_python_3_11_2_pickled_in_training_args_refuse_no_checkpoint(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 10)
    written = (folder / "training_args.bin").stat()
    content, archive = io.BytesIO(), io.BytesIO()
    As3112(content, protocol=2).dump({"save_strategy": Strategy.STEPS})
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zipped:
        zipped.writestr("archive/data.pkl", content.getvalue())
        zipped.writestr("archive/version", "3\n")
    assert b"getattr" in content.getvalue()
    (folder / "training_args.bin").write_bytes(archive.getvalue())
    os.utime(folder / "training_args.bin", ns=(written.st_atime_ns, written.st_mtime_ns))

    verdict = validate(folder, Spool(tmp_path))

    assert verdict.complete, verdict.problems
