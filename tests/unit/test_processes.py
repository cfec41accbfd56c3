"""What /proc says of processes: real ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptsync import processes

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc here")

CATCHES = "import signal, sys; signal.signal(signal.SIGUSR1, print); print('up', flush=True); sys.stdin.read()"
STARTS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CATCHES!r}])"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which started another one that catches SIGUSR1."""
    command = [sys.executable, "-c", STARTS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        for pid in processes.group_members(process.pid):
            os.kill(pid, signal.SIGKILL)


def test_the_members_of_a_group_and_all_descendants_are_found(child: subprocess.Popen[bytes]) -> None:
    below = processes.descendants(child.pid)

    assert len(below) == 1
    assert sorted(processes.group_members(child.pid)) == sorted([child.pid, *below])


def test_only_a_process_with_a_handler_catches_a_signal(child: subprocess.Popen[bytes]) -> None:
    (grandchild,) = processes.descendants(child.pid)

    assert processes.catches(grandchild, signal.SIGUSR1)
    assert not processes.catches(child.pid, signal.SIGUSR1)
    assert not processes.catches(grandchild, signal.SIGTERM)


def test_a_process_is_found_by_the_environment_it_was_started_with_in_whatever_session() -> None:
    words = [sys.executable, "-c", "print('up', flush=True); import sys; sys.stdin.read()"]
    environ = {**os.environ, "CKPTSYNC_TEST_FOUND": "abc"}
    with subprocess.Popen(words, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout
        process.stdout.readline()

        assert processes.started_with("CKPTSYNC_TEST_FOUND", "abc") == [process.pid]
        assert processes.started_with("CKPTSYNC_TEST_FOUND", "ab") == []
        process.kill()
        process.wait()
        assert processes.started_with("CKPTSYNC_TEST_FOUND", "abc") == []


def test_a_stored_identity_finds_the_process_while_it_runs_and_none_with_its_reused_pid(
    child: subprocess.Popen[bytes],
) -> None:
    named = processes.identity(child.pid)

    assert processes.living(named) == child.pid
    assert processes.living(named | {"born": "1"}) is None
    assert processes.living(named | {"host": "elsewhere"}) is None
    for pid in processes.group_members(child.pid):
        os.kill(pid, signal.SIGKILL)
    child.wait()
    assert processes.living(named) is None


def test_an_identity_of_another_container_with_the_same_host_name_names_no_process_here() -> None:
    own = processes.identity(os.getpid())
    script = "import json, os; from ckptsync import processes; print(json.dumps(processes.identity(os.getpid())))"
    container = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script]
    done = subprocess.run(container, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no pid namespaces of one's own here: {done.stderr.strip()}")
    there = json.loads(done.stdout)

    assert there["host"] == own["host"]
    assert not processes.is_visible(there)
    assert processes.living({**own, "pid_namespace": there["pid_namespace"]}) is None


def test_an_identity_of_another_time_namespace_says_nothing_of_a_process_here() -> None:
    named = processes.identity(os.getpid())

    assert not processes.is_visible({**named, "time_namespace": "time:[1]"})


def test_an_identity_that_version_0_1_0_wrote_finds_its_process() -> None:
    named = processes.identity(os.getpid())
    del named["pid_namespace"], named["time_namespace"]

    assert processes.is_visible(named)
    assert processes.living(named) == os.getpid()


@pytest.mark.parametrize("named", [None, 7, "text", [], {}, {"host": None}, {"pid": 1}], ids=repr)
def test_an_invalid_identity_finds_no_process(named: object) -> None:
    assert processes.living(named) is None


def test_a_zombie_counts_as_ended() -> None:
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)

    assert processes.start_time(zombie.pid) is None
    zombie.wait()
    assert processes.start_time(zombie.pid) is None
