"""The embedded server as a real process, for tests of any folder."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckptsync.server import local

MARK = "MARK"
"""A method of no other request; at /_faults no fault is injected into it."""


class ServerProcess:
    """Starts on entering, stops on leaving; `url`, `api_key` and `data_dir` are what a client needs."""

    program: Sequence[str] = ("-m", "ckptsync.server")

    def __init__(
        self, data_dir: Path, *, port: int = 0, faults: bool = True, crash_after: float = 300, args: Sequence[str] = ()
    ) -> None:
        self.data_dir = data_dir
        self.request_log = data_dir.with_name(f"{data_dir.name}-requests.jsonl")
        self.url = ""
        self.api_key = ""
        self._port = port
        self._args = [f"--crash-after={crash_after}", *(["--faults"] if faults else []), *args]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """What makes a wandb client use this server and nothing of the user's."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": self.api_key, "WANDB_ENTITY": "local"}

    def start(self) -> None:
        """Start, or start again after `stop` or `kill`: on the same folder and the same port."""
        (self.data_dir / "server.json").unlink(missing_ok=True)
        command = [sys.executable, *self.program, "--data-dir", str(self.data_dir), "--port", str(self._port)]
        self._process = subprocess.Popen(
            [*command, "--until-unused", "--log-requests", str(self.request_log), *self._args],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + 30
        while (found := local.running(self.data_dir)) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start (exit status {self._process.poll()})")
            time.sleep(0.02)
        self.url, self.api_key = found.url, found.api_key
        self._port = int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        """A clean stop; does nothing when it is down already."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        self._close()

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nothing is taken back."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._close()

    def _close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def request(
        self, method: str, path: str, *, data: bytes | None = None, headers: dict[str, str] | None = None, key: str | None = None
    ) -> tuple[int, bytes]:
        """One plain request with the API key; (status, body) whatever the status."""
        token = base64.b64encode(f"api:{self.api_key if key is None else key}".encode()).decode()
        url = path if path.startswith("http") else self.url + path
        request = urllib.request.Request(url, data=data, method=method)  # noqa: S310 - our own server
        for name, value in {"Authorization": f"Basic {token}", **(headers or {})}.items():
            request.add_header(name, value)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """A GraphQL answer, errors included."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        _, answer = self.request("POST", "/graphql", data=body, headers={"Content-Type": "application/json"})
        parsed: dict[str, Any] = json.loads(answer)
        return parsed

    def faults(self, rules: Sequence[dict[str, Any]]) -> None:
        """Replace the fault rules; an empty list removes them all."""
        self.request("DELETE", "/_faults")
        if rules:
            status, answer = self.request("POST", "/_faults", data=json.dumps(list(rules)).encode())
            assert status == 200, answer

    def fault_hits(self) -> list[int]:
        """How often each rule hit."""
        return [rule["hits"] for rule in json.loads(self.request("GET", "/_faults")[1])]

    def requests(self) -> list[dict[str, Any]]:
        """What has been asked of the server so far, from its request log.

        A request is logged after its answer has gone, so one more is made and waited for.
        """
        if self._process is not None and self._process.poll() is None:
            before = self._logged(mark=True)
            self.request(MARK, "/_faults")
            deadline = time.monotonic() + 30
            while len(self._logged(mark=True)) == len(before):
                assert time.monotonic() < deadline, "the server does not log its requests"
                time.sleep(0.01)
        return self._logged(mark=False)

    def _logged(self, *, mark: bool) -> list[dict[str, Any]]:
        whole, _, _ = self.request_log.read_text(encoding="utf-8").rpartition("\n")
        requests = [json.loads(line) for line in whole.splitlines()]
        return [request for request in requests if (request["method"] == MARK) is mark]
