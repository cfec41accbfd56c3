"""Preemption notices from the metadata services of GCE, AWS and Azure.

Takes the choice of `--notice` and gives Notices, from one thread per provider (listener, over the table `SOURCES`). Silent on a
machine without such a service. Knows neither trainings nor stores. Never acknowledges a notice: on Azure that would start the
preemption early.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ckptsync.job.preemption.aws import AWS
from ckptsync.job.preemption.azure import Azure
from ckptsync.job.preemption.gce import GCE
from ckptsync.job.preemption.notice import Source

SOURCES: Mapping[str, Callable[[], Source]] = {"gce": GCE, "aws": AWS, "azure": Azure}

CHOICES = ("auto", *SOURCES, "none")


def sources(choice: str) -> list[Source]:
    """The sources that `--notice` selects: all of them for `auto`."""
    wanted = SOURCES if choice == "auto" else [choice] if choice in SOURCES else []
    return [SOURCES[name]() for name in wanted]
