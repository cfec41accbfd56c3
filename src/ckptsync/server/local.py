"""Finds or starts this user's server. May not import starlette, uvicorn or graphql: they are an optional extra."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ckptsync.errors import CkptsyncError, ConfigurationError, LockedError

START_SECONDS = 30.0
STOP_SECONDS = 10.0
ANSWER_SECONDS = 5.0

KEEP_SECONDS = 1.0
"""Seconds between two checks whether the server's process lives."""

MISSED = 3
"""Failed checks in a row after which it is started again: somebody else may be restarting it."""

LAST_PORT = "port"
"""A file in the data folder with the port that the last server listened on."""

log = logging.getLogger(__name__)

USERS = "users"
"""A file in the data folder. Each client holds a shared lock on it; the server exits when it gets an exclusive one."""


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A reachable server: what a client needs to use it."""

    url: str
    api_key: str = field(repr=False)
    data_dir: Path


def default_data_dir() -> Path:
    """$CKPTSYNC_DATA_DIR, else a folder below the user's data folder (XDG)."""
    if chosen := os.environ.get("CKPTSYNC_DATA_DIR"):
        return Path(chosen)
    data_home = os.environ.get("XDG_DATA_HOME")
    return (Path(data_home) if data_home else Path.home() / ".local" / "share") / "ckptsync" / "server"


def running(data_dir: Path | None = None) -> LocalServer | None:
    """The server on the data folder, if its process is alive and responds at its address."""
    folder = data_dir or default_data_dir()
    try:
        record = _announced(folder)
        url, pid = str(record["url"]), int(record["pid"])
        key = (folder / "api-key").read_text(encoding="ascii").strip()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return LocalServer(url, key, folder) if _is_alive(pid) and _answers(url, pid) else None


def _announced(folder: Path) -> dict[str, Any]:
    """What a server says of itself while it runs, and leaves behind when it is killed."""
    value = json.loads((folder / "server.json").read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _last_port(folder: Path) -> int:
    """Where a server of this folder listened last; 0, for any port, where that is unknown."""
    try:
        return int((folder / LAST_PORT).read_text("ascii"))
    except (OSError, ValueError):
        return 0


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _answers(url: str, pid: int) -> bool:
    """True if that process responds, and not another one that got its port."""
    # Bypass proxies from the environment: they cannot reach a loopback address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/healthz", timeout=ANSWER_SECONDS) as response:
            return bool(json.load(response)["pid"] == pid)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def local_server(data_dir: Path | None = None, *, extra_args: Sequence[str] = ()) -> Iterator[LocalServer]:
    """The server that runs on the data folder, or one of our own, which lasts for as long as anybody uses it.

    It also ends when all of them have died, however they died. One that dies while the block lasts is started again at the same
    address: a training that logs to it knows no other. Raises ConfigurationError when the `server` extra is missing or the data
    folder can't be written to, CkptsyncError when the server doesn't start.
    """
    folder = data_dir or default_data_dir()
    with _in_use(folder) as users:
        keeper = _Keeper(folder, extra_args)
        try:
            yield keeper.start()
        finally:
            keeper.leave(users)


class _Keeper:
    """Keeps a server running on a data folder: the one that is found there, or one of its own."""

    def __init__(self, folder: Path, extra_args: Sequence[str]) -> None:
        self._folder = folder
        self._extra_args = extra_args
        self._own: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="local server", daemon=True)

    def start(self) -> LocalServer:
        """The server, which is looked after from now on."""
        found = running(self._folder) or self._start_own()
        self._thread.start()
        return found

    def leave(self, users: int) -> None:
        """End our servers, unless somebody else uses them."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        for process in self._own:
            _leave(process, users)

    def _keep(self) -> None:
        missed, failing = 0, False
        while not self._over.wait(KEEP_SECONDS):
            missed = 0 if self._lives() else missed + 1
            if missed < MISSED:
                continue
            try:
                self._start_own()
            except (CkptsyncError, OSError) as error:
                if not failing:
                    log.error("the local server ended and cannot be started again, retrying: %s", error)
                failing = True
            else:
                log.warning("the local server had ended: started it again")
                failing = False

    def _lives(self) -> bool:
        """Whether the server's process does. It may be too busy to answer, which is no reason to start another."""
        for process in self._own:
            process.poll()
        try:
            return _is_alive(int(_announced(self._folder)["pid"]))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _start_own(self) -> LocalServer:
        """Start a server where the last one listened; elsewhere if something else has that port."""
        _require_extra()
        port = _last_port(self._folder)
        try:
            return self._start_at(port)
        except CkptsyncError:
            if not port:
                raise
            return self._start_at(0)

    def _start_at(self, port: int) -> LocalServer:
        command = [sys.executable, "-m", "ckptsync.server", "--data-dir", str(self._folder), "--port", str(port)]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [*command, "--until-unused", *self._extra_args],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
            self._own.append(process)
            return _started(process, self._folder, errors)


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[int]:
    """Hold the shared lock of the clients. Waits for a server that is about to exit."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        users = os.open(folder / USERS, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to {folder}: {error.strerror}", hint="Set CKPTSYNC_DATA_DIR to a writable folder."
        ) from error
    try:
        _share(users, folder)
        yield users
    finally:
        os.close(users)


def _share(users: int, folder: Path) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_SH)
    except OSError as error:
        hint = "Set CKPTSYNC_DATA_DIR to a folder on a local disk."
        raise ConfigurationError(f"{folder} is on a file system without file locks: {error.strerror}", hint=hint) from error


def _require_extra() -> None:
    for module in ("starlette", "uvicorn", "graphql"):
        if importlib.util.find_spec(module) is None:
            raise ConfigurationError(
                f"the local server needs {module}, which is not installed", hint="pip install 'ckptsync[server]'"
            )


def _started(process: subprocess.Popen[bytes], folder: Path, errors: IO[bytes]) -> LocalServer:
    """Wait until our process responds. If another process took the folder first, its server is used."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = running(folder)
        if found is not None:
            return found
        if process.poll() not in (None, LockedError.exit_code):
            break
        time.sleep(0.02)
    raise CkptsyncError(f"the local server did not start: {_last_line(errors) or 'no answer in time'}")


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _leave(process: subprocess.Popen[bytes], users: int) -> None:
    """Stop our server. If it has other clients, only close its input: it then exits with the last of them."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        return
    process.terminate()
    try:
        process.communicate(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
