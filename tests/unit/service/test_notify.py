"""What the service manager hears, from a real socket."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptsync.service import notify
from ckptsync.upload.status_line import StatusLine

Heard = Callable[[], list[str]]


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the manager listens, as it writes it into NOTIFY_SOCKET."""
    if request.param == "path":
        return str(tmp_path / "notify")
    if sys.platform != "linux":
        pytest.skip("only Linux has abstract addresses")
    return f"@ckptsync-test-{secrets.token_hex(8)}"


@pytest.fixture
def heard(address: str) -> Iterator[Heard]:
    """A manager's end of the socket: returns what came since the last time it was asked, a datagram each."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1) if address[0] == "@" else address)
        manager.setblocking(False)

        def receive() -> list[str]:
            found = []
            while True:
                try:
                    found.append(manager.recv(4096).decode())
                except BlockingIOError:
                    return found

        yield receive


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_ready_and_its_status_come_in_one_datagram(address: str, heard: Heard) -> None:
    notify.Manager(address).ready("step 5 durable")

    assert heard() == ["READY=1\nSTATUS=step 5 durable"]


def test_a_status_is_sent_only_when_it_differs(address: str, heard: Heard) -> None:
    manager = notify.Manager(address)
    manager.ready("a")

    for text in ("a", "b", "b", "a"):
        manager.status(text)

    assert heard()[1:] == ["STATUS=b", "STATUS=a"]


def test_a_status_cannot_smuggle_in_another_assignment(address: str, heard: Heard) -> None:
    notify.Manager(address).status("a\nMAINPID=1")

    assert heard() == ["STATUS=a MAINPID=1"]


def test_the_watchdog_is_reset_in_time_and_not_more_often_than_needed(address: str, heard: Heard) -> None:
    clock = Clock()
    manager = notify.Manager(address, watchdog=8.0, clock=clock)
    times = []

    for _ in range(100):
        clock.now += 0.25
        manager.alive()
        times += [clock.now for each in heard() if each == "WATCHDOG=1"]

    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps
    assert max(gaps) <= 4.0
    assert min(gaps) >= 1.0


def test_a_manager_without_a_watchdog_gets_no_resets(address: str, heard: Heard) -> None:
    notify.Manager(address).alive()

    assert heard() == []


def test_a_stop_and_a_reload_are_reported(address: str, heard: Heard) -> None:
    manager = notify.Manager(address)

    manager.reloading()
    manager.stopping()

    reloading, stopping = heard()
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert stopping == "STOPPING=1"


def test_the_timeout_is_extended_only_while_enough_bytes_move(address: str, heard: Heard) -> None:
    clock = Clock()
    manager = notify.Manager(address, clock=clock)
    extension = [f"EXTEND_TIMEOUT_USEC={round(notify.GRACE * 1e6)}"]

    manager.moving(10**9)
    assert heard() == [], "what moved before is no sign that anything still moves"
    manager.moving(10**9 + notify.LEAST_BYTES)
    assert heard() == extension
    for _ in range(10):
        clock.now += 1
        manager.moving(10**9 + notify.LEAST_BYTES + 500)
    assert heard() == [], "a heartbeat is not progress"
    manager.moving(0)
    assert heard() == [], "another transfer begins"
    manager.moving(notify.LEAST_BYTES)
    assert heard() == extension


def test_without_a_manager_nothing_happens() -> None:
    manager = notify.claim({})

    manager.ready("x")
    manager.alive()
    manager.moving(1)
    manager.stopping()

    assert manager.beat is None


def test_a_manager_that_is_gone_or_deaf_stops_nothing(tmp_path: Path) -> None:
    notify.Manager(str(tmp_path / "nobody")).ready("x")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        manager = notify.Manager(str(tmp_path / "deaf"))
        for number in range(10_000):
            manager.status(str(number))
    manager.status("after it went")


@pytest.mark.parametrize("given", ["vsock:2:1234", "relative"])
def test_an_address_of_another_kind_is_as_good_as_none(given: str) -> None:
    notify.Manager(given).ready("x")


def test_the_manager_is_taken_out_of_the_environment(address: str, heard: Heard) -> None:
    environ = {
        "NOTIFY_SOCKET": address,
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "OTHER": "kept",
    }

    manager = notify.claim(environ)

    assert environ == {"OTHER": "kept"}
    assert manager.watchdog == 3.0
    assert manager.beat == 1.5
    manager.ready("x")
    assert "READY=1\nSTATUS=x" in heard()


def test_a_watchdog_that_is_meant_for_another_process_is_not_ours() -> None:
    assert notify.claim({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}).watchdog is None
    assert notify.claim({"WATCHDOG_USEC": "soon"}).watchdog is None


def test_nothing_of_weight_is_imported_for_it() -> None:
    program = (
        "import sys, ckptsync.service.notify; print([m for m in sys.modules if m.split('.')[0] in {'asyncio', 'json', 'wandb'}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("standing", "line"),
    [
        (StatusLine(), "nothing durable yet; queue empty"),
        (StatusLine(newest=5, waiting=1), "nothing durable yet; 1 queued up to step 5"),
        (StatusLine(durable=500, rate=12_340_000.0), "step 500 durable; queue empty; 12.3 MB/s"),
        (
            StatusLine(durable=500, newest=700, waiting=2, uploading="checkpoint-600", percent=45, rate=12_340_000.0),
            "step 500 durable; behind by 200 steps, 2 queued; uploading checkpoint-600 45 %; 12.3 MB/s",
        ),
    ],
)
def test_how_things_stand_is_one_line(standing: StatusLine, line: str) -> None:
    assert str(standing) == line
