"""Word that this machine is about to be taken away: the metadata services of GCE, AWS and Azure, asked from threads of their own.

Knows neither trainings nor stores. Silent where there is no such service. No request here ever shortens the time that is left:
Azure's StartRequests is never posted. http.client knows no proxies, which could not reach these link-local addresses.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

from ckptsync.job import grace_period

log = logging.getLogger(__name__)

LINK_LOCAL = "http://169.254.169.254"

PROBE_TIMEOUT = 2.0
"""Seconds that a metadata service may take to show that it is there. A real one answers within milliseconds."""

ANSWER_TIMEOUT = 10.0

PROBES = (0.0, 5.0, 15.0, 40.0)
"""Seconds before each look for a service: on a fresh machine the network may come up after us. Then the source ends, silently."""


@dataclass(frozen=True, slots=True)
class Notice:
    """The machine goes away. `seconds` are left, None where nobody says; not `final`: it may go, and nobody says when."""

    source: str
    seconds: float | None = None
    final: bool = True

    def __str__(self) -> str:
        left = "" if self.seconds is None else f", {self.seconds:.0f} s left"
        return f"{self.source}{left}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a metadata service said. The names of `headers` are in small letters."""

    status: int
    headers: Mapping[str, str]
    text: str


class Endpoint:
    """One metadata service by its address, `http://HOST[:PORT]` or `HOST[:PORT]`."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address if "//" in address else f"http://{address}")
        self._host, self._port = parts.hostname or "", parts.port or 80

    def ask(self, path: str, headers: Mapping[str, str], *, method: str = "GET", timeout: float = ANSWER_TIMEOUT) -> Answer:
        """One request on a connection of its own. Raises OSError where nobody answers properly."""
        # Only here: it costs 20 ms, and every command imports this module for its options.
        import http.client

        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        try:
            connection.request(method, path, headers=dict(headers))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, names, response.read().decode("utf-8", "replace").strip())
        except http.client.HTTPException as error:
            raise OSError(f"no proper answer: {type(error).__name__} {error}") from error
        finally:
            connection.close()


class Source(Protocol):
    """One provider's notices. Every method may raise OSError or ValueError: it is asked again then."""

    name: str
    interval: float

    def present(self) -> bool:
        """Whether this machine has the service."""
        ...

    def look(self) -> Notice | None:
        """Ask once; it may take as long as the service holds the answer back."""
        ...


class Google:
    """GCE. A plain GET first, then one that the service holds back until the value changes.

    The other way round, a process that starts after the flip would wait for ever.
    """

    name = "gce"
    interval = 1.0
    HELD = 60
    """Seconds after which the service answers although nothing changed."""

    def __init__(self, address: str | None = None) -> None:
        self._endpoint = Endpoint(address or os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal")
        self._etag: str | None = None

    def present(self) -> bool:
        """See Source."""
        answer = self._ask("", PROBE_TIMEOUT)
        return answer.status == 200 and answer.headers.get("metadata-flavor") == "Google"

    def look(self) -> Notice | None:
        """See Source."""
        etag, self._etag = self._etag, None
        if etag is None:
            answer = self._ask("", ANSWER_TIMEOUT)
        else:
            query = f"?wait_for_change=true&last_etag={etag}&timeout_sec={self.HELD}"
            answer = self._ask(query, self.HELD + ANSWER_TIMEOUT)
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        # Only now: after any failure the next look is a plain one, and no flip is missed.
        self._etag = answer.headers.get("etag")
        return Notice(self.name, grace_period.PROMISED[self.name]) if answer.text == "TRUE" else None

    def _ask(self, query: str, timeout: float) -> Answer:
        path = "/computeMetadata/v1/instance/preempted" + query
        return self._endpoint.ask(path, {"Metadata-Flavor": "Google"}, timeout=timeout)


class Amazon:
    """AWS by IMDSv2: the spot interruption notice, and before it a recommendation to rebalance, which promises no time."""

    name = "aws"
    interval = 5.0
    TOKEN_SECONDS = 21600

    def __init__(self, address: str | None = None) -> None:
        self._off = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
        self._endpoint = Endpoint(address or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or LINK_LOCAL)
        self._token: str | None = None
        self._hinted = False

    def present(self) -> bool:
        """See Source."""
        return not self._off and self._renew()

    def look(self) -> Notice | None:
        """See Source."""
        action = self._get("/latest/meta-data/spot/instance-action")
        if action:
            return Notice(self.name, _seconds_until(datetime.fromisoformat(action["time"])))
        if not self._hinted and self._get("/latest/meta-data/events/recommendations/rebalance"):
            self._hinted = True
            return Notice(self.name, final=False)
        return None

    def _renew(self) -> bool:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(self.TOKEN_SECONDS)}
        answer = self._endpoint.ask("/latest/api/token", headers, method="PUT", timeout=PROBE_TIMEOUT)
        self._token = answer.text if answer.status == 200 else None
        return bool(self._token)

    def _get(self, path: str) -> dict[str, Any] | None:
        """The JSON at a path; None where there is none (404). A token that ran out (401) is renewed."""
        for _ in range(2):
            answer = self._endpoint.ask(path, {"X-aws-ec2-metadata-token": self._token or ""})
            if answer.status == 404:
                return None
            if answer.status == 200:
                return _object(answer.text)
            self._renew()
        raise ValueError(f"status {answer.status}")


class Azure:
    """Azure's scheduled events, matched to this machine: a scale set's machines all see the events of the whole set."""

    name = "azure"
    interval = 1.0
    HEADERS = {"Metadata": "true"}  # noqa: RUF012 - never changed

    def __init__(self, address: str | None = None) -> None:
        self._endpoint = Endpoint(address or os.environ.get("CKPTSYNC_AZURE_METADATA_ENDPOINT") or LINK_LOCAL)
        self._machine = ""

    def present(self) -> bool:
        """See Source."""
        path = "/metadata/instance/compute/name?api-version=2020-06-01&format=text"
        answer = self._endpoint.ask(path, self.HEADERS, timeout=PROBE_TIMEOUT)
        self._machine = answer.text if answer.status == 200 else ""
        return bool(self._machine)

    def look(self) -> Notice | None:
        """See Source. The very first request may take two minutes, since it switches the service on: it is asked again."""
        answer = self._endpoint.ask("/metadata/scheduledevents?api-version=2020-07-01", self.HEADERS)
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        from email.utils import parsedate_to_datetime

        for event in _object(answer.text).get("Events", []):
            if event.get("EventType") == "Preempt" and self._machine in event.get("Resources", []):
                before = event.get("NotBefore")
                # An event that has started names no time any more.
                return Notice(self.name, _seconds_until(parsedate_to_datetime(before)) if before else 0.0)
        return None


SOURCES: Mapping[str, Callable[[], Source]] = {"gce": Google, "aws": Amazon, "azure": Azure}

CHOICES = ("auto", *SOURCES, "none")


def sources(choice: str) -> list[Source]:
    """The sources that `--notice` asks for: all of them for `auto`."""
    wanted = SOURCES if choice == "auto" else [choice] if choice in SOURCES else []
    return [SOURCES[name]() for name in wanted]


class Notices:
    """Follows the sources, each in a thread of its own, and tells each notice once.

    `told` is called from those threads. Nothing here outlives the process: the threads are daemons, and most of the time wait
    for an answer.
    """

    def __init__(self, followed: Sequence[Source], told: Callable[[Notice], None], *, probes: Sequence[float] = PROBES) -> None:
        self.found: list[str] = []
        self._sources = followed
        self._told = told
        self._probes = probes
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin to follow."""
        for source in self._sources:
            threading.Thread(target=self._follow, args=(source,), name=f"notices-{source.name}", daemon=True).start()

    def stop(self) -> None:
        """Tell nothing more."""
        self._stop.set()

    def _follow(self, source: Source) -> None:
        if not any(self._finds(source, delay) for delay in self._probes):
            log.debug("no metadata service of %s here", source.name)
            return
        self.found.append(source.name)
        log.info("following the preemption notices of %s", source.name)
        failing = False
        while not self._stop.is_set():
            try:
                notice = source.look()
                failing = False
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                # Anything but what the documents promise: ask again, and say so once.
                log.log(logging.DEBUG if failing else logging.INFO, "metadata service of %s: %s", source.name, error)
                notice, failing = None, True
            if notice and not self._stop.is_set():
                self._told(notice)
                if notice.final:
                    return
            self._stop.wait(source.interval)

    def _finds(self, source: Source, delay: float) -> bool:
        if self._stop.wait(delay):
            return False
        try:
            return source.present()
        except (OSError, ValueError):
            return False


def _seconds_until(moment: datetime) -> float:
    return max(0.0, moment.timestamp() - time.time())


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError(f"not a JSON object: {text[:80]!r}")
    return value
