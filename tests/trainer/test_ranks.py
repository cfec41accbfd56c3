"""Ranks of which only some have ckptsync's hook."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.trainings import TINY, Training, difference

LACKING = """
import os, sys
if os.environ["RANK"] == os.environ["LACKS_HOOK"]:
    for name in [*os.environ]:
        if name == "PYTHONPATH" or name.startswith("CKPTSYNC_"):
            del os.environ[name]
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("lacking", ["1", "0"])
def test_ranks_of_which_one_lacks_the_hook_train_without_ckptsync_and_say_so_once(
    training: Training, uninterrupted_ranks: Path, tmp_path: Path, lacking: str
) -> None:
    (tmp_path / "lacking.py").write_text(LACKING)
    out = tmp_path / "out"

    _, said = training.run(tmp_path / "lacking.py", *TINY, out, ranks=2, follow=out, env={"LACKS_HOOK": lacking})

    assert said.count(f"no markers and no save at a signal: rank {lacking} of 2 was started without ckptsync's hook") == 1
    assert not (out / ".ckptsync/complete").exists()
    assert difference(out, uninterrupted_ranks) == []


UNCONNECTED = """
import os, runpy, sys
from datetime import timedelta
import torch.distributed as distributed
from ckptsync.trainer import ranks
ranks._ARRIVAL = ranks._CONNECTION = timedelta(seconds=3)
real = distributed.new_group
def new_group(*args, **options):
    if os.environ["RANK"] != "1":
        return real(*args, **options)
    if os.environ["CONNECTED"] == "yes":
        real(*args, **options)
    raise RuntimeError("injected: no route to host")
distributed.new_group = new_group
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("connected", ["yes", "no"])
def test_ranks_of_which_one_alone_cannot_connect_train_without_markers_and_wait_for_nobody(
    training: Training, uninterrupted_ranks: Path, tmp_path: Path, connected: str
) -> None:
    (tmp_path / "unconnected.py").write_text(UNCONNECTED)
    out = tmp_path / "out"

    _, said = training.run(tmp_path / "unconnected.py", *TINY, out, ranks=2, follow=out, env={"CONNECTED": connected})

    assert said.count("no markers and no save at a signal") == 2, said
    assert "the ranks can't agree: injected" in said
    assert not (out / ".ckptsync/complete").exists()
    assert difference(out, uninterrupted_ranks) == []
