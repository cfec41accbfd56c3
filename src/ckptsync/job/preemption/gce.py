"""Preemption notices of Google Compute Engine."""

from __future__ import annotations

import os

from ckptsync.job import grace_period
from ckptsync.job.preemption.metadata_service import ANSWER_TIMEOUT, PROBE_TIMEOUT, Answer, Endpoint
from ckptsync.job.preemption.notice import Notice


class GCE:
    """The instance's `preempted` value: one plain GET first, then requests that the service holds until the value changes.

    Without the plain GET, a process that starts after the change would wait forever.
    """

    name = "gce"
    interval = 1.0
    HELD = 60
    """Seconds after which the service answers even though nothing changed."""

    def __init__(self, address: str | None = None) -> None:
        self._endpoint = Endpoint(address or os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal")
        self._etag: str | None = None

    def present(self) -> bool:
        """See Source."""
        answer = self._ask("", PROBE_TIMEOUT)
        return answer.status == 200 and answer.headers.get("metadata-flavor") == "Google"

    def poll(self) -> Notice | None:
        """See Source."""
        etag, self._etag = self._etag, None
        if etag is None:
            answer = self._ask("", ANSWER_TIMEOUT)
        else:
            query = f"?wait_for_change=true&last_etag={etag}&timeout_sec={self.HELD}"
            answer = self._ask(query, self.HELD + ANSWER_TIMEOUT)
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        # Only now: after any failure the next request is a plain one, so that no change is missed.
        self._etag = answer.headers.get("etag")
        return Notice(self.name, grace_period.PROMISED[self.name]) if answer.text == "TRUE" else None

    def _ask(self, query: str, timeout: float) -> Answer:
        path = "/computeMetadata/v1/instance/preempted" + query
        return self._endpoint.ask(path, {"Metadata-Flavor": "Google"}, timeout=timeout)
