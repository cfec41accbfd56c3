"""Finds or starts this user's server. May not import starlette, uvicorn or graphql: they are an optional extra."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ckptsync.errors import CkptsyncError, ConfigurationError, LockedError

START_SECONDS = 30.0
STOP_SECONDS = 10.0
ANSWER_SECONDS = 5.0

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
        record = json.loads((folder / "server.json").read_text(encoding="utf-8"))
        url, pid = str(record["url"]), int(record["pid"])
        key = (folder / "api-key").read_text(encoding="ascii").strip()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return LocalServer(url, key, folder) if _is_alive(pid) and _answers(url, pid) else None


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
    """The running server on the data folder, else a new one, which exits with its last client, however that client ends.

    Raises ConfigurationError if the `server` extra is missing or the data folder is not writable, CkptsyncError if the server
    does not start.
    """
    folder = data_dir or default_data_dir()
    with _in_use(folder) as users:
        found = running(folder)
        if found is not None:
            yield found
            return
        _require_extra()
        command = [sys.executable, "-m", "ckptsync.server", "--data-dir", str(folder), "--port", "0"]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [*command, "--until-unused", *extra_args],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
            try:
                yield _started(process, folder, errors)
            finally:
                _leave(process, users)


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
