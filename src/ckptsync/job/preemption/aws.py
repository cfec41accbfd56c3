"""Preemption notices of Amazon EC2."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

from ckptsync.job.preemption.metadata_service import LINK_LOCAL, PROBE_TIMEOUT, Endpoint, json_object, seconds_until
from ckptsync.job.preemption.notice import Notice


class AWS:
    """The spot interruption notice, and before it the rebalance recommendation, which names no time.

    Through IMDSv2, and without its token where none comes: its answer has a hop limit of 1 by default and doesn't reach a
    container, while the rest does where the instance allows IMDSv1.
    """

    name = "aws"
    interval = 5.0
    TOKEN_SECONDS = 21600

    def __init__(self, address: str | None = None) -> None:
        self._disabled = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
        self._endpoint = Endpoint(address or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or LINK_LOCAL)
        self._token: str | None = None
        self._hinted = False

    def present(self) -> bool:
        """See Source."""
        return not self._disabled and (self._renew_token() or self._answers())

    def poll(self) -> Notice | None:
        """See Source."""
        action = self._get("/latest/meta-data/spot/instance-action")
        if action:
            return Notice(self.name, seconds_until(datetime.fromisoformat(action["time"])))
        if not self._hinted and self._get("/latest/meta-data/events/recommendations/rebalance"):
            self._hinted = True
            return Notice(self.name, final=False)
        return None

    def _renew_token(self) -> bool:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(self.TOKEN_SECONDS)}
        try:
            answer = self._endpoint.ask("/latest/api/token", headers, method="PUT", timeout=PROBE_TIMEOUT)
        except OSError:
            return False
        self._token = answer.text if answer.status == 200 else None
        return bool(self._token)

    def _answers(self) -> bool:
        return self._endpoint.ask("/latest/meta-data/instance-id", {}, timeout=PROBE_TIMEOUT).status == 200

    def _get(self, path: str) -> dict[str, Any] | None:
        """The JSON object at a path; None if there is none (404). Renews an expired token (401)."""
        for _ in range(2):
            answer = self._endpoint.ask(path, {"X-aws-ec2-metadata-token": self._token} if self._token else {})
            if answer.status == 404:
                return None
            if answer.status == 200:
                return json_object(answer.text)
            self._renew_token()
        raise ValueError(f"status {answer.status}")
