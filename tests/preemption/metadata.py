"""The metadata services of three clouds, as far as notices go: real HTTP servers on loopback, one per cloud.

Each answers as its provider documents and notes every request. `announce` is the moment at which the provider decides.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit


class Service:
    """A server that lives while the block lasts. `variables` makes ckptsync ask it; `requests` are (method, path with query)."""

    variable = ""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.announced = threading.Event()
        self.hidden = False
        self.left = 30.0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.announced.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which ckptsync finds this service in the place of the real one."""
        return {self.variable: self.address}

    def announce(self, seconds: float) -> None:
        """From now on the machine is marked: it goes away in so many seconds."""
        self.left = time.time() + seconds
        self.announced.set()

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any) -> tuple[int, str, dict[str, str]]:
        """Status, body and headers for a request."""
        raise NotImplementedError

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def reply(self) -> None:
                service.requests.append((self.command, self.path))
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                status, text, headers = 404, "", dict[str, str]()
                if not service.hidden:
                    status, text, headers = service.answer(self.command, parts.path, query, self.headers)
                if not status:
                    self.close_connection = True
                    return
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text.encode())
                except OSError:
                    return

            do_GET = do_PUT = do_POST = reply  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


class GoogleService(Service):
    """GCE: holds `wait_for_change` back until the value is another than the ETag says."""

    variable = "GCE_METADATA_HOST"

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any) -> tuple[int, str, dict[str, str]]:
        if headers.get("Metadata-Flavor") != "Google":
            return 403, "", {}
        if method != "GET" or path != "/computeMetadata/v1/instance/preempted":
            return 404, "", {}
        if query.get("wait_for_change") == "true" and query.get("last_etag") == self._etag():
            self.announced.wait(float(query.get("timeout_sec", 3600)))
        return 200, "TRUE" if self.announced.is_set() else "FALSE", {"Metadata-Flavor": "Google", "ETag": self._etag()}

    def _etag(self) -> str:
        return "f1a9" if self.announced.is_set() else "0b7c"


class AmazonService(Service):
    """AWS: IMDSv2 only, so without a valid token there is no answer.

    Where `reached_by_token` is false it is an instance that allows IMDSv1, as seen from a container behind a bridge.
    """

    variable = "AWS_EC2_METADATA_SERVICE_ENDPOINT"

    def __init__(self) -> None:
        super().__init__()
        self.rebalance = False
        self.token = "token-1"
        self.reached_by_token = True

    @property
    def variables(self) -> dict[str, str]:
        return {self.variable: f"http://{self.address}/"}

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any) -> tuple[int, str, dict[str, str]]:
        if path == "/latest/meta-data/instance-id":
            return 200, "i-0123456789abcdef0", {}
        if path == "/latest/api/token":
            if not self.reached_by_token:
                return 0, "", {}
            valid = method == "PUT" and 1 <= int(headers.get("X-aws-ec2-metadata-token-ttl-seconds", "0")) <= 21600
            return (200, self.token, {}) if valid else (400, "", {})
        if self.reached_by_token and headers.get("X-aws-ec2-metadata-token") != self.token:
            return 401, "", {}
        if path == "/latest/meta-data/spot/instance-action" and self.announced.is_set():
            return 200, json.dumps({"action": "terminate", "time": _iso(self.left)}), {}
        if path == "/latest/meta-data/events/recommendations/rebalance" and self.rebalance:
            return 200, json.dumps({"noticeTime": _iso(time.time())}), {}
        return 404, "", {}


class AzureService(Service):
    """Azure: the events of a scale set of two machines, of which this is one. `hit` is the one that goes."""

    variable = "CKPTSYNC_AZURE_METADATA_ENDPOINT"

    def __init__(self) -> None:
        super().__init__()
        self.hit = "train_1"
        self.started = False

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any) -> tuple[int, str, dict[str, str]]:
        if headers.get("Metadata") != "true" or "X-Forwarded-For" in headers:
            return 400, "", {}
        if path == "/metadata/instance/compute/name" and query.get("format") == "text":
            return 200, "train_1", {}
        if path != "/metadata/scheduledevents" or query.get("api-version") != "2020-07-01":
            return 404, "", {}
        event = {
            "EventId": "602d9444-d2cd-49c7-8624-8643e7171297",
            "EventType": "Preempt",
            "ResourceType": "VirtualMachine",
            "Resources": [self.hit],
            "EventStatus": "Started" if self.started else "Scheduled",
            "NotBefore": "" if self.started else format_datetime(datetime.fromtimestamp(self.left, UTC), usegmt=True),
        }
        maintenance = {**event, "EventType": "Freeze", "Resources": ["train_1"]}
        events = [maintenance, event] if self.announced.is_set() else [maintenance]
        return 200, json.dumps({"DocumentIncarnation": 1, "Events": events}), {}


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
