"""The watcher's lock, with real processes that are killed while they hold it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ckptsync import locks
from ckptsync.errors import LockedError
from ckptsync.locks import FolderLock

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from ckptsync import locks
from ckptsync.locks import FolderLock

lock = locks.FolderLock(Path(sys.argv[1]))
lock.acquire("the first one, pid 1234")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_second_watcher_gets_an_error_that_names_the_first(tmp_path: Path) -> None:
    (tmp_path / "out" / ".ckptsync").mkdir(parents=True)
    path = tmp_path / "out" / ".ckptsync" / "lock"
    first = locks.FolderLock(path)
    first.acquire("ckptsync, pid 42, run demo")

    with pytest.raises(LockedError, match=rf"{tmp_path}/out is already watched by ckptsync, pid 42, run demo") as raised:
        locks.FolderLock(path).acquire("the second one")

    assert raised.value.exit_code == 7
    assert locks.FolderLock(path).holder == "ckptsync, pid 42, run demo"
    first.release()
    assert locks.FolderLock(path).holder is None


def test_the_lock_is_free_after_kill_9_of_its_holder_though_a_child_of_it_lives_on(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        orphan = int(holder.stdout.readline())
        try:
            with pytest.raises(LockedError, match="the first one, pid 1234"):
                locks.FolderLock(path).acquire("the second one")
            holder.kill()
            holder.wait()

            lock = locks.FolderLock(path)
            lock.acquire("the second one")
            lock.release()
        finally:
            os.kill(orphan, signal.SIGKILL)


def test_asking_for_the_holder_never_keeps_a_watcher_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            _ = locks.FolderLock(path).holder

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(200):
            lock = locks.FolderLock(path)
            lock.acquire("the watcher")
            lock.release()
    finally:
        over.set()
        for asker in askers:
            asker.join()


def test_a_lock_that_was_never_taken_has_no_holder(tmp_path: Path) -> None:
    assert locks.FolderLock(tmp_path / "lock").holder is None
    assert list(tmp_path.iterdir()) == []


def no_flock(_file: object, _kind: int) -> None:
    raise OSError(errno.ENOSYS, "injected: Function not implemented")


def test_where_there_are_no_locks_a_file_names_the_holder_and_keeps_a_second_watcher_out(tmp_path: Path) -> None:
    path = tmp_path / ".ckptsync" / "lock"
    path.parent.mkdir()
    first, second = FolderLock(path, no_flock), FolderLock(path, no_flock)
    first.acquire("the first one")

    with pytest.raises(LockedError, match=r"is already watched by the first one, on "):
        second.acquire("the second one")
    assert second.holder == f"the first one, on {socket.gethostname()}"

    first.release()
    second.acquire("the second one")
    assert not second.works
    second.release()


def test_a_lock_file_of_a_process_that_has_ended_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / ".ckptsync" / "lock"
    path.parent.mkdir()
    ended = {"owner": "who was killed", "host": socket.gethostname(), "pid": os.getpid(), "born": "another time"}
    (path.parent / "lock.owner").write_text(json.dumps(ended))
    lock = FolderLock(path, no_flock)

    lock.acquire("the next one")

    assert lock.holder == f"the next one, on {socket.gethostname()}"
    lock.release()
    assert lock.holder is None


def test_a_lock_file_of_another_container_with_the_same_host_name_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / ".ckptsync" / "lock"
    path.parent.mkdir()
    there = {"host": socket.gethostname(), "pid_namespace": "pid:[1]", "pid": os.getpid(), "born": "another time"}
    (path.parent / "lock.owner").write_text(json.dumps({"owner": "another container", **there}))

    with pytest.raises(LockedError, match="already watched by another container"):
        FolderLock(path, no_flock).acquire("this one")


def test_a_writer_that_hangs_holds_up_the_next_one_for_a_while_only(tmp_path: Path) -> None:
    with (tmp_path / "run.lock").open("w") as hanging:
        fcntl.flock(hanging, fcntl.LOCK_EX)

        with locks.exclusive(tmp_path / "run.lock", patience=0.2):
            went_on = True

    assert went_on


def test_one_writer_at_a_time_and_the_lock_is_free_afterwards(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def write() -> None:
        for _ in range(20):
            with locks.exclusive(tmp_path / "run.lock"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert max(most) == 1
    assert len(most) == 80
