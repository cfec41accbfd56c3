"""Finding, starting and ending the server of this user."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckptsync.errors import ConfigurationError
from ckptsync.server.local import default_data_dir, local_server, running
from tests.integration.conftest import wait_for
from tests.server_process import ServerProcess


def test_the_server_that_runs_is_used(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as process, local_server(process.data_dir) as server:
        assert (server.url, server.api_key) == (process.url, process.api_key)


def test_a_server_of_our_own_lives_as_long_as_the_block(tmp_path: Path) -> None:
    with local_server(tmp_path) as server:
        inside = running(tmp_path)

    assert inside == server
    assert running(tmp_path) is None
    assert not (tmp_path / "server.json").exists()


def test_the_key_is_not_shown(tmp_path: Path) -> None:
    with local_server(tmp_path) as server:
        assert server.api_key not in repr(server)


def test_a_server_of_our_own_dies_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\nfrom ckptsync.server.local import local_server\n"
        "with local_server(pathlib.Path(sys.argv[1])):\n    print('up', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 15

    while running(tmp_path) is not None and time.monotonic() < deadline:
        time.sleep(0.05)

    assert running(tmp_path) is None


@pytest.mark.parametrize("record", ["", "{}", '{"version": 1, "pid": 1, "url": "http://127.0.0.1:1"}', "[]"])
def test_a_stale_record_is_no_server(tmp_path: Path, record: str) -> None:
    (tmp_path / "server.json").write_text(record, encoding="utf-8")
    (tmp_path / "api-key").write_text("0" * 40, encoding="utf-8")

    assert running(tmp_path) is None


def test_after_kill_9_nothing_runs_and_a_new_one_can(tmp_path: Path) -> None:
    process = ServerProcess(tmp_path / "data")
    process.start()
    process.kill()

    before = running(process.data_dir)
    with local_server(process.data_dir) as server:
        assert running(process.data_dir) == server
    assert before is None


def test_the_data_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    by_default = default_data_dir()
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    by_xdg = default_data_dir()
    monkeypatch.setenv("CKPTSYNC_DATA_DIR", "/mine")

    assert by_default == Path("/home/me/.local/share/ckptsync/server")
    assert by_xdg == Path("/data/ckptsync/server")
    assert default_data_dir() == Path("/mine")


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with pytest.raises(ConfigurationError) as caught, local_server(tmp_path):
        pass

    assert caught.value.hint == "pip install 'ckptsync[server]'"


def test_finding_a_server_imports_none_of_the_extra() -> None:
    program = "import sys, ckptsync.server.local; print([m for m in ('starlette', 'uvicorn', 'graphql') if m in sys.modules])"

    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert shown.stdout.strip() == "[]"


def test_two_that_start_at_once_share_one_server(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\nfrom ckptsync.server.local import local_server\n"
        "with local_server(pathlib.Path(sys.argv[1])) as server:\n    print(server.url, flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    urls = [process.stdout.readline() for process in both if process.stdout is not None]
    for process in both:
        process.communicate()

    assert urls[0] == urls[1] != b""


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_of_our_own_goes_on_for_as_long_as_another_process_uses_it(tmp_path: Path, end: signal.Signals) -> None:
    program = (
        "import pathlib, signal, sys\nfrom ckptsync.server.local import local_server\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
        "with local_server(pathlib.Path(sys.argv[1])) as server:\n    print(server.url, flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        url = first.stdout.readline().decode().strip()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second:
            assert second.stdout is not None
            assert second.stdout.readline().decode().strip() == url
            first.send_signal(end)
            first.wait(15)
            time.sleep(0.5)

            left = running(tmp_path)
    deadline = time.monotonic() + 15
    while running(tmp_path) is not None and time.monotonic() < deadline:
        time.sleep(0.05)

    assert left is not None
    assert left.url == url
    assert running(tmp_path) is None


def test_sigterm_is_a_clean_stop(tmp_path: Path) -> None:
    process = ServerProcess(tmp_path / "data")
    process.start()

    os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while (process.data_dir / "server.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.stop()

    assert not (process.data_dir / "server.json").exists()


def test_a_server_that_dies_while_it_is_used_is_started_again_at_its_address(tmp_path: Path) -> None:
    with local_server(tmp_path) as server:
        pid = json.loads((tmp_path / "server.json").read_text())["pid"]
        os.kill(pid, signal.SIGKILL)

        wait_for(lambda: (found := running(tmp_path)) and found.url == server.url, what="the server at its old address")

        assert json.loads((tmp_path / "server.json").read_text())["pid"] != pid
    assert running(tmp_path) is None


def test_the_next_server_listens_where_the_last_one_did(tmp_path: Path) -> None:
    with local_server(tmp_path) as first:
        pass
    with local_server(tmp_path) as second:
        assert second.url == first.url
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(first.url.rpartition(":")[2])))
        other.listen()
        with local_server(tmp_path) as third:
            assert third.url != first.url
