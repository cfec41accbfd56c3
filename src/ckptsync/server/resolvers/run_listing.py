"""Lists runs by filter and order."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from ckptsync.server.resolvers.context import Call, Row, resolves
from ckptsync.server.resolvers.filters import ordered, selected
from ckptsync.server.resolvers.paging import page
from ckptsync.server.resolvers.runs import display_name, state_of


def _lookup(call: Call, run: Row, name: str) -> Any:
    """A run's value by the name that filters and orders use for it: a column, `config.x`, `summary_metrics.x` or `tags`."""
    head, _, rest = name.partition(".")
    if head == "config" and rest:
        return _descend(json.loads(run["config"]), rest.removesuffix(".value"), config=True)
    if head in ("summary_metrics", "summaryMetrics", "summary") and rest:
        return _descend(json.loads(run["summary"]), rest)
    if head == "tags":
        return json.loads(run["tags"])
    if head in ("display_name", "displayName"):
        return display_name(run)
    if head == "state":
        return state_of(run, call.now, call.crash_after)
    columns = {
        "group": "group_name", "jobType": "job_type",
        "createdAt": "created_at", "heartbeatAt": "heartbeat_at",
    }  # fmt: skip
    return run.get(columns.get(head, head))


def _descend(value: Any, path: str, *, config: bool = False) -> Any:
    if isinstance(value, dict) and path in value:
        found = value[path]
    else:
        head, _, rest = path.partition(".")
        if not isinstance(value, dict) or head not in value:
            return None
        found = value[head]
        if config and isinstance(found, dict) and "value" in found:
            found = found["value"]
        return _descend(found, rest) if rest else found
    return found["value"] if config and isinstance(found, dict) and "value" in found else found


def _matching_runs(call: Call, project: Row, filters: str | None) -> list[Row]:
    rows = call.rows("SELECT * FROM runs WHERE project_id = ? ORDER BY created_at, id", project["id"])
    return selected(rows, filters, partial(_lookup, call))


@resolves("Project.runs")
def project_runs(
    source: Row,
    call: Call,
    filters: str | None = None,
    first: int | None = None,
    after: str | None = None,
    order: str | None = None,
) -> Row:
    rows = _matching_runs(call, source, filters)
    return page(ordered(rows, order, partial(_lookup, call)), first, after)


@resolves("Project.runCount")
def project_run_count(source: Row, call: Call, filters: str | None = None) -> int:
    return len(_matching_runs(call, source, filters))
