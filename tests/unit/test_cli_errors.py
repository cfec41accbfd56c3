"""What a user gets wrong without any network: one line on stderr, the right code, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckptsync import durable, locks, record
from tests.checkpoints import make_checkpoint

KEY = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = Path(sys.executable).with_name("ckptsync")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the commands run: an output folder with a whole and a torn checkpoint, a file, and settings that are wrong."""
    make_checkpoint(tmp_path / "out", 5)
    make_checkpoint(tmp_path / "out", 6, without=["optimizer.pt"])
    (tmp_path / "file").touch()
    (tmp_path / "broken.toml").write_text("quiet = = 5")
    (tmp_path / "wrong.toml").write_text('quiet-period = "soon"\n')
    return tmp_path


def ckptsync(folder: Path, home: Path, *words: str | bytes, **environ: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
    return subprocess.run(
        [PROGRAM, *words],
        cwd=folder,
        env=base | environ,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refused command says."""
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("ckptsync: ")
    return line


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("lst", 2, "No such command 'lst'"),
        ("watch", 2, "OUTPUT_DIR"),
        ("watch missing --run-id a", 2, "missing does not exist"),
        ("watch file --run-id a", 2, "file is not a folder"),
        ("watch out", 2, "--run-id"),
        ("watch out --run-id a/b", 2, "'a/b' cannot be a run id"),
        ("watch out --run-id a --project a/b", 2, "cannot be a project"),
        ("watch out --run-id a --spool-limit much", 2, "'much' is not a size"),
        ("watch out --run-id a --backlog some", 2, "--backlog"),
        ("watch out --run-id a --quiet-period -1", 2, "--quiet-period"),
        ("watch out --run-id a --no-such-flag", 2, "--no-such-flag"),
        ("watch out --run-id a --config missing.toml", 3, "no such settings file"),
        ("watch out --run-id a --config broken.toml", 3, "broken.toml"),
        ("watch out --run-id a --config wrong.toml", 2, "soon"),
        ("watch out --run-id a", 3, "no W&B credentials"),
        ("list a", 3, "WANDB_API_KEY"),
        ("list", 2, "RUN"),
        ("resume a --output-dir file", 2, "file is not a folder"),
        ("resume a", 2, "--output-dir"),
        ("resume a --output-dir new", 3, "--local"),
        ("resume a/b --output-dir new", 2, "is not a run"),
        ("run --run-id a --output-dir new", 2, "COMMAND"),
        ("run --run-id a -- python train.py", 2, "--output-dir"),
        ("run --run-id a --output-dir new -- python train.py", 3, "no W&B credentials"),
        ("status missing", 2, "does not exist"),
        ("status file", 2, "not a folder"),
        ("status out --max-age soon", 2, "--max-age"),
        ("verify missing", 2, "not a folder"),
        ("verify file", 2, "not a folder"),
    ],
)
def test_bad_input_is_one_line_with_the_right_code(folder: Path, home: Path, line: str, code: int, said: str) -> None:
    done = ckptsync(folder, home, *line.split())

    assert done.returncode == code, done.stderr
    assert said in refusal(done)


@pytest.mark.parametrize("run_id", ["a b ", " ", "a\nb", "a?b", "../x", b"caf\xe9"])
def test_a_run_id_that_cannot_be_one_is_refused(folder: Path, home: Path, run_id: str | bytes) -> None:
    done = ckptsync(folder, home, "watch", "out", "--run-id", run_id)

    assert done.returncode == 2
    assert "cannot be a run id" in refusal(done)


@pytest.mark.parametrize("address", ["ftp://x", "http://[::1", "nonsense"])
def test_an_address_that_is_none_is_refused(folder: Path, home: Path, address: str) -> None:
    done = ckptsync(folder, home, "list", "a", WANDB_BASE_URL=address, WANDB_API_KEY=KEY)

    assert done.returncode == 3
    assert "WANDB_BASE_URL" in refusal(done)


def test_a_torn_checkpoint_is_told_with_its_reason(folder: Path, home: Path) -> None:
    done = ckptsync(folder, home, "verify", "out/checkpoint-6")

    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines() == [
        "ckptsync: out/checkpoint-6 is incomplete: optimizer.pt: missing, but other training state is present."
        " Resume from another checkpoint."
    ]


def test_a_whole_checkpoint_is_told_too(folder: Path, home: Path) -> None:
    done = ckptsync(folder, home, "verify", "out/checkpoint-5")

    assert (done.returncode, done.stderr) == (0, "")
    assert "complete, resumable, layout plain, 7 files" in done.stdout


def test_a_second_watcher_is_refused_before_the_store_is_asked(folder: Path, home: Path) -> None:
    durable.make_folder(folder / "out" / ".ckptsync")
    lock = locks.FolderLock(folder / "out" / ".ckptsync" / "lock")
    lock.acquire("ckptsync, pid 42, run me/p/a")
    try:
        done = ckptsync(folder, home, "watch", "out", "--run-id", "a", WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=KEY)
    finally:
        lock.release()

    assert done.returncode == 7
    assert "already watched by ckptsync, pid 42, run me/p/a" in refusal(done)


def test_a_key_is_never_shown_even_with_all_details(folder: Path, home: Path) -> None:
    done = ckptsync(folder, home, "list", "a b/c", "-vv", WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=KEY)

    assert done.returncode == 2
    assert KEY not in done.stdout + done.stderr


def test_asking_for_nothing_shows_the_help(folder: Path, home: Path) -> None:
    done = ckptsync(folder, home)

    assert done.returncode == 2
    assert "Usage: ckptsync" in done.stdout
    assert done.stderr == ""


def test_a_refused_command_leaves_nothing_behind(folder: Path, home: Path) -> None:
    before = sorted(folder.rglob("*"))

    ckptsync(folder, home, "status", "out")
    ckptsync(folder, home, "watch", "out", "--run-id", "a/b")
    ckptsync(folder, home, "verify", "out/checkpoint-5")

    assert sorted(folder.rglob("*")) == before


def test_a_setting_that_no_command_has_is_named_and_one_of_another_command_is_not(folder: Path, home: Path) -> None:
    (folder / "typo.toml").write_text('quite-period = "5s"\nmax-age = "30m"\nkeep-last = 3\n')
    record.update(folder, run_id="abc")

    done = ckptsync(folder, home, "status", ".", "--config", "typo.toml")

    assert done.returncode == 0
    assert done.stderr == "ckptsync: typo.toml: ignoring unknown setting 'quite-period'\n"
