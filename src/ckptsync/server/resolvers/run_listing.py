"""Lists runs by filter and order."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from ckptsync.server.resolvers.context import Call, Row, iso_date, resolves
from ckptsync.server.resolvers.listing import Listing
from ckptsync.server.resolvers.runs import display_name, state_of

CONFIG, SUMMARY = ("config",), ("summary_metrics", "summaryMetrics", "summary")
COLUMNS = {
    **{name: name for name in ("name", "notes", "description", "host", "program", "commit_hash", "sweep", "exit_code", "tags")},
    "group": "group_name",
    "jobType": "job_type",
    "job_type": "job_type",
    "created_at": "created_at",
    "createdAt": "created_at",
    "heartbeat_at": "heartbeat_at",
    "heartbeatAt": "heartbeat_at",
}
SORTABLE = {
    **{name: column for name, column in COLUMNS.items() if column in ("name", "created_at", "heartbeat_at")},
    **dict.fromkeys(("display_name", "displayName"), "coalesce(nullif(display_name, ''), name)"),
}


def _reads(name: str) -> tuple[str, ...]:
    """The columns that `_look_up` reads for a name."""
    head, _, rest = name.partition(".")
    if rest:
        return ("config",) if head in CONFIG else ("summary",) if head in SUMMARY else ()
    if head in ("display_name", "displayName"):
        return ("display_name", "name")
    if head == "state":
        return ("state", "preempting", "heartbeat_at")
    return (COLUMNS[head],) if head in COLUMNS else ()


def _look_up(call: Call, run: Row, name: str) -> Any:
    """A run's value by the name that filters and orders use for it: a column, `config.x`, `summary_metrics.x` or `tags`."""
    head, _, rest = name.partition(".")
    if head in CONFIG and rest:
        return _descend(json.loads(run["config"]), rest.removesuffix(".value"), config=True)
    if head in SUMMARY and rest:
        return _descend(json.loads(run["summary"]), rest)
    if head == "tags":
        return json.loads(run["tags"])
    if head in ("display_name", "displayName"):
        return display_name(run)
    if head == "state":
        return state_of(run, call.now, call.crash_after)
    value = run.get(COLUMNS.get(head, ""))
    return iso_date(value) if value is not None and COLUMNS[head] in ("created_at", "heartbeat_at") else value


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


def _runs(call: Call, project: Row) -> Listing:
    return Listing(
        call,
        source="(SELECT * FROM runs WHERE project_id = ?)",
        values=(project["id"],),
        key="id",
        order="+created_at",
        look_up=partial(_look_up, call),
        reads=_reads,
        sortable=SORTABLE,
    )


@resolves("Project.runs")
def project_runs(
    source: Row,
    call: Call,
    filters: str | None = None,
    first: int | None = None,
    after: str | None = None,
    order: str | None = None,
) -> Row:
    return _runs(call, source).page(filters, order, first, after)


@resolves("Project.runCount")
def project_run_count(source: Row, call: Call, filters: str | None = None) -> int:
    return _runs(call, source).count(filters)
