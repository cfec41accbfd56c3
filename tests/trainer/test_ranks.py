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
