"""Exit 0 means durable: whatever isn't at the end of a training is an error, and the end comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptsync.upload.spool import Spool
from tests.checkpoints import make_checkpoint
from tests.integration.conftest import Tool, kept, program, refusal
from tests.server_process import ServerProcess

SAVE = "save = lambda step, **more: make_checkpoint(pathlib.Path(sys.argv[1]), step, content='end', **more)"


def training(output_dir: Path, *lines: str) -> list[str]:
    return [*program(SAVE, *lines), str(output_dir)]


def test_the_last_save_becomes_durable_though_it_lacks_a_file_that_the_one_before_had(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    lines = ("(save(4) / 'extra.json').write_text('{}')", "time.sleep(2)", "save(8, max_steps=8)")

    done = tool("run", "--run-id", "lacks", "--output-dir", out, "--quiet-period", "0.2", "--", *training(out, *lines))

    assert done.returncode == 0, done.stderr
    assert [step for step, _ in kept(server, "lacks")] == [4, 8]


def test_a_last_save_that_is_incomplete_is_an_error_though_the_training_exits_with_0(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    lines = ("save(4)", "time.sleep(1)", "save(8, without=['optimizer.pt'])")

    done = tool("run", "--run-id", "half", "--output-dir", out, "--quiet-period", "0.2", "--", *training(out, *lines))

    assert done.returncode == 5
    assert "checkpoint-8 is not durable: incomplete: optimizer.pt" in refusal(done)
    assert [step for step, _ in kept(server, "half")] == [4]


PACKS = (
    "from ckptsync import record",
    "from ckptsync.trainer import marker",
    "out = pathlib.Path(sys.argv[1])",
    "attempt = record.read(out).attempt.number",
    "record.update(out, acknowledged={'attempt': attempt, 'step': 0}, reached_end={'attempt': attempt, 'step': 8})",
    "for step in (4, 8):",
    "    save(step, max_steps=8).rename(out / f'packed-{attempt}-{step}')",
    "    marker.write(out, step, world_size=1, attempt=attempt, though_gone=True)",
)
"""A training with a SyncCallback, and with a callback that moves each checkpoint away as soon as it is saved."""


def test_a_last_save_that_was_gone_before_it_could_be_pinned_is_an_error_that_names_it_and_the_training_is_not_finished(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    line: list[str | Path] = [
        "run",
        "--run-id",
        "packs",
        "--output-dir",
        out,
        "--quiet-period",
        "0.2",
        "--",
        *training(out, *PACKS),
    ]

    done, again = tool(*line), tool(*line)

    assert (done.returncode, again.returncode) == (1, 1), done.stderr
    assert "checkpoint-8 is not durable: it was gone before it could be pinned" in refusal(done)
    assert "a callback that moves or packs checkpoints?" in refusal(again)
    assert "the training is finished" not in again.stderr
    disabled = tool(*line, WANDB_MODE="disabled")
    assert disabled.returncode == 0, disabled.stderr


@pytest.mark.parametrize(("without", "code"), [(["optimizer.pt"], 5), (None, 4)])
def test_a_single_pass_that_made_nothing_durable_is_an_error(
    tool: Tool, tmp_path: Path, without: list[str] | None, code: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if without:
        make_checkpoint(out, 4, without=without)

    done = tool.watch_once(out, "nothing")

    assert done.returncode == code
    assert "checkpoint" in refusal(done)


@pytest.mark.slow
def test_an_unreachable_store_keeps_the_end_waiting_no_longer_than_was_asked_for(tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_checkpoint(out, 2, content="end")
    words = ("run", "--run-id", "away", "--output-dir", out, "--quiet-period", "0.2", "--retry-for", "2s")

    done = tool(*words, "--", *training(out, "save(4)"), timeout=120, WANDB_BASE_URL="http://127.0.0.1:9")

    assert done.returncode == 6, done.stderr
    assert [each.step for each in Spool(out).pending()] == [4]


@pytest.mark.slow
def test_a_program_that_empties_its_output_folder_at_the_start_is_followed_all_the_same(
    tool: Tool, server: ServerProcess, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "left-over.txt").touch()
    empties = ("import shutil", "shutil.rmtree(sys.argv[1])", "save(4)", "time.sleep(4)", "save(8, max_steps=8)")

    done = tool("run", "--run-id", "empties", "--output-dir", out, "--quiet-period", "0.2", "--", *training(out, *empties))

    assert done.returncode == 0, done.stderr
    assert "was replaced: following the new folder" in done.stderr
    assert [step for step, _ in kept(server, "empties")] == [4, 8]
    again = tool("run", "--run-id", "empties", "--output-dir", out, "--", *training(out))
    assert "the training is finished" in again.stderr
