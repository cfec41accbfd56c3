"""Preemption notices of Azure."""

from __future__ import annotations

import os

from ckptsync.job.preemption.metadata_service import LINK_LOCAL, PROBE_TIMEOUT, Endpoint, json_object, seconds_until
from ckptsync.job.preemption.notice import Notice


class Azure:
    """Scheduled events, filtered by machine: every machine of a scale set sees the events of the whole set."""

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

    def poll(self) -> Notice | None:
        """See Source. The very first request enables the service and may take two minutes; a timeout is retried."""
        answer = self._endpoint.ask("/metadata/scheduledevents?api-version=2020-07-01", self.HEADERS)
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        from email.utils import parsedate_to_datetime

        for event in json_object(answer.text).get("Events", []):
            if event.get("EventType") == "Preempt" and self._machine in event.get("Resources", []):
                before = event.get("NotBefore")
                # An event that has started no longer names a time.
                return Notice(self.name, seconds_until(parsedate_to_datetime(before)) if before else 0.0)
        return None
