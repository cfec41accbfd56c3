"""A real training on every file system that this machine can make, killed once: nothing is lost, torn or twice."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckptsync import layouts
from ckptsync.upload.spool import Spool
from tests import evidence
from tests.checkpoints import make_checkpoint
from tests.faults.conftest import HEADINGS, Followed, mounted, without_privileges
from tests.figures import Table
from tests.integration.conftest import Tool, kill_tree, program, refusal, training, wait_for
from tests.server_process import ServerProcess

TABLE = Table("file systems: how checkpoints are pinned, and what was lost", HEADINGS, zero=("lost", "torn", "twice"))
RUN, LAST, EVERY = "r1", 32, 4
DATA = Path(".local", "share", "ckptsync", "server")

Mount = contextlib.AbstractContextManager[Path]


def in_loop_file(*make: str, size: int = 400) -> Callable[[Path], Mount]:
    """A new file system of that many MiB, in a file."""

    @contextlib.contextmanager
    def mount(folder: Path) -> Iterator[Path]:
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(size * 2**20)
        _require(*make, str(image))
        with mounted(folder / "mounted", "-o", "loop", str(image)) as path:
            yield path

    return mount


@contextlib.contextmanager
def in_memory(folder: Path) -> Iterator[Path]:
    with mounted(folder / "mounted", "-t", "tmpfs", "-o", "size=400m", "tmpfs") as path:
        yield path


@contextlib.contextmanager
def over_another(folder: Path) -> Iterator[Path]:
    layers = [folder / name for name in ("lower", "upper", "work")]
    for layer in layers:
        layer.mkdir()
    options = ",".join(f"{layer.name}dir={layer}" for layer in layers)
    with mounted(folder / "mounted", "-t", "overlay", "-o", options, "overlay") as path:
        yield path


def in_user_space(*wrapper: str, locks: bool) -> Callable[[Path], Mount]:
    """A FUSE file system, whose process does what the program asks for: flock(2) as well, if `locks` are forwarded to it."""

    @contextlib.contextmanager
    def mount(folder: Path) -> Iterator[Path]:
        below, path = folder / "below", folder / "mounted"
        below.mkdir()
        path.mkdir()
        _require(*wrapper, "bindfs", *(["--multithreaded", "--enable-lock-forwarding"] if locks else []), str(below), str(path))
        try:
            yield path
        finally:
            subprocess.run(["umount", "--lazy", str(path)], check=True)

    return mount


without_flock = in_user_space(sys.executable, str(Path(__file__).with_name("without_flock.py")), locks=True)
"""As Lustre without `-o flock`, or NFS without lockd: flock(2) is "No locks available"."""


def _require(*command: str) -> None:
    """Run a command that makes a file system, and skip with its own words where it can't."""
    if not all(shutil.which(name) for name in command if name.startswith(("mkfs", "bindfs"))):
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{command[0]}: {done.stderr.strip()}")


@dataclass(frozen=True, slots=True)
class Kind:
    """A file system: how it is made, and how files are pinned there."""

    name: str
    make: Callable[[Path], Mount]
    pinned_by: str


KINDS = (
    Kind("ext4", in_loop_file("mkfs.ext4", "-q"), "link"),
    Kind("ext4 with mtimes of whole seconds", in_loop_file("mkfs.ext4", "-q", "-I", "128"), "link"),
    Kind("XFS with reflink", in_loop_file("mkfs.xfs", "-q", "-m", "reflink=1"), "reflink"),
    Kind("XFS without reflink", in_loop_file("mkfs.xfs", "-q", "-m", "reflink=0"), "link"),
    Kind("btrfs", in_loop_file("mkfs.btrfs", "-q"), "reflink"),
    Kind("tmpfs", in_memory, "link"),
    Kind("overlayfs", over_another, "link"),
    Kind("FUSE", in_user_space(locks=False), "link"),
    Kind("FUSE without flock", without_flock, "link"),
)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.replace(" ", "-"))
def test_a_training_that_is_killed_on_it_loses_nothing(tmp_path: Path, kind: Kind) -> None:
    tool = Tool(tmp_path / "home")
    with kind.make(tmp_path) as folder:
        output_dir = folder / "out"
        command = training(output_dir, steps=LAST, save=EVERY, seconds=0.3, save_total_limit=3)
        line = ["run", "--local", "--run-id", RUN, "--output-dir", str(output_dir), "--quiet-period", "0.3", "--backlog", "all"]

        _run_until_killed(tool, [*line, "--", *command], output_dir, log=tmp_path / "log")
        again = tool(*line, "--", *command, timeout=200)

        assert again.returncode == 0, again.stderr
        with ServerProcess(tool.home / ".local" / "share" / "ckptsync" / "server") as server:
            versions = evidence.versions(server, f"checkpoint-{RUN}")
            found = _damage(server, versions, output_dir, tmp_path / "pulled")
        assert [each.step for each in versions if "latest" in each.aliases] == [LAST]
        assert not evidence.leftovers(output_dir)
        assert _pinned_by(output_dir) == {kind.pinned_by}
        TABLE.add(kind.name, f"pinned by {kind.pinned_by}", len(found.lost), len(found.torn), len(found.duplicate))
        assert found == evidence.Damage()


def test_on_a_file_system_without_flock_checkpoints_are_uploaded_and_one_watcher_at_a_time(
    tmp_path: Path, server: ServerProcess
) -> None:
    with without_flock(tmp_path) as folder:
        followed = Followed(folder, server, "no-flock")
        try:
            followed.start()
            followed.durable(followed.save(), seconds=30)
            second = followed.once()
        finally:
            followed.kill()
        third = followed.once()

        assert second.returncode == 7, second.stderr
        assert third.returncode == 0, third.stderr
        assert followed.damage() == evidence.Damage()
        assert not evidence.leftovers(followed.output_dir)


def test_a_local_server_on_a_file_system_without_flock_is_a_configuration_error(tmp_path: Path) -> None:
    with without_flock(tmp_path) as folder:
        done = Tool(tmp_path / "home", CKPTSYNC_DATA_DIR=str(folder))("list", "r1", "--local")

    assert done.returncode == 3
    assert "without file locks" in refusal(done)
    assert "Set CKPTSYNC_DATA_DIR to a folder on a local disk." in done.stderr


def test_doctor_says_that_a_file_system_has_no_flock(tmp_path: Path, server: ServerProcess) -> None:
    tool = Tool(tmp_path / "home", server)
    with without_flock(tmp_path) as folder:
        found = tool.json("doctor", folder, "--dry-run")
        left = list(folder.iterdir())
    usual = tool.json("doctor", tmp_path, "--dry-run")

    (locks,) = (each for each in found if each["check"] == "locks")
    assert (locks["state"], "no file locks (flock)" in locks["message"]) == ("warning", True)
    assert "lock.owner" in locks["advice"]
    assert not left
    assert [each["state"] for each in usual if each["check"] == "locks"] == ["ok"]


def test_doctor_names_a_checkpoint_that_cannot_be_read(tmp_path: Path, server: ServerProcess) -> None:
    folder = make_checkpoint(tmp_path / "out", 4)
    folder.chmod(0)

    done = without_privileges(Tool(tmp_path / "home", server), "doctor", tmp_path / "out", "--dry-run")
    folder.chmod(0o755)

    assert done.returncode == 1
    assert "checkpoint-4 cannot be read: Permission denied" in done.stdout
    assert not done.stderr


@pytest.mark.slow
def test_a_single_pass_beside_a_checkpoint_that_cannot_be_listed_is_an_error(tmp_path: Path, server: ServerProcess) -> None:
    followed = Followed(tmp_path, server, "unlisted")
    newest = followed.output_dir / followed.save()
    newest.chmod(0)

    refused = followed.once_without_privileges()
    newest.chmod(0o755)
    done = followed.once_without_privileges()

    assert refused.returncode == 1, refused.stderr
    assert f"{newest.name} is not durable: cannot be listed: Permission denied" in refusal(refused)
    assert done.returncode == 0, done.stderr
    assert followed.damage() == evidence.Damage()


@pytest.mark.slow
@pytest.mark.parametrize("unreadable", [".", "trainer_state.json"])
def test_the_newest_checkpoint_is_not_passed_over_because_it_cannot_be_read_now(
    tmp_path: Path, server: ServerProcess, unreadable: str
) -> None:
    out, tool = tmp_path / "out", Tool(tmp_path / "home", server)
    make_checkpoint(out, 4)
    newest = make_checkpoint(out, 8)
    (newest / unreadable).chmod(0)
    words = ("run", "--run-id", f"unreadable-{len(unreadable)}", "--output-dir", out, "--quiet-period", "0.2", "--")
    resumed = program("print(sys.argv[1])")

    refused = without_privileges(tool, *words, *resumed, "{checkpoint}")
    (newest / unreadable).chmod(0o755)
    done = without_privileges(tool, *words, *resumed, "{checkpoint}")

    assert refused.returncode == 1
    assert "checkpoint-8 cannot be read" in refusal(refused)
    assert Path(done.stdout.strip()) == newest
    assert not Spool(out).torn()


def test_an_output_folder_whose_disk_is_unmounted_for_a_while_is_told_and_followed_again(
    tmp_path: Path, server: ServerProcess
) -> None:
    below, disk, log = tmp_path / "below", tmp_path / "disk", tmp_path / "log"
    make_checkpoint(below / "out", 4)

    def told(text: str) -> None:
        wait_for(lambda: text in log.read_text(), what=text)

    with mounted(disk, "--bind", str(below)):
        watcher = Tool(tmp_path / "home", server).start("watch", disk / "out", "--run-id", "unmounted", log=log)
        told("uploaded checkpoint-4 ")
    try:
        told("is gone: nothing is uploaded until it is back")
        make_checkpoint(below / "out", 8)
        with mounted(disk, "--bind", str(below)):
            told("is back")
            told("uploaded checkpoint-8 ")
            watcher.terminate()

            assert watcher.wait(30) == 0, log.read_text()
    finally:
        watcher.kill()
        watcher.wait(30)


def _run_until_killed(tool: Tool, words: Sequence[str], output_dir: Path, *, log: Path) -> None:
    """Start it, and lose the machine as soon as a checkpoint of the middle is pinned."""
    process = tool.start(*words, log=log)
    try:
        middle, spool = f"checkpoint-{LAST // 2}.", Spool(output_dir)
        wait_for(lambda: any(name.startswith(middle) for name in _known(spool)), seconds=120, what=f"{middle}, see {log}")
    finally:
        kill_tree(process.pid)
        process.wait(30)


def _known(spool: Spool) -> list[str]:
    return [*spool.waiting(), *(receipt.snapshot for receipt in spool.receipts)]


def _damage(server: ServerProcess, versions: Sequence[evidence.Kept], output_dir: Path, into: Path) -> evidence.Damage:
    """What is lost, torn or twice: by the steps that the Trainer saves, its folders that are left, and the server's bytes."""
    steps = [each.step for each in versions]
    torn = []
    for each in versions:
        here = output_dir / f"checkpoint-{each.step}"
        if not _is_complete(server, each, into) or (here.exists() and evidence.digests(here) != each.files):
            torn.append(each.version)
    return evidence.Damage(
        lost=tuple(f"checkpoint-{step}" for step in range(EVERY, LAST + 1, EVERY) if step not in steps),
        torn=tuple(torn),
        duplicate=tuple(each.version for each in versions if steps.count(each.step) > 1),
    )


def _is_complete(server: ServerProcess, version: evidence.Kept, into: Path) -> bool:
    """Whether the server holds every byte of a version, and they are a complete checkpoint."""
    folder = into / f"checkpoint-{version.step}"
    for path, expected in version.files.items():
        content = evidence.content(server, expected)
        if evidence.digest(content) != expected:
            return False
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return layouts.inspect(folder).complete


def _pinned_by(output_dir: Path) -> set[str]:
    lines = (output_dir / ".ckptsync" / "history.jsonl").read_text().splitlines()
    return {event["by"] for event in map(json.loads, lines) if event["event"] == "pinned"}
