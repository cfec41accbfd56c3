"""Runs: made and changed by upsertBucket, found by name, listed with filters and orders; their state as a reader sees it.

```
upsertBucket, file_stream ─▶ running ─▶ finished (exit code 0) | failed (another exit code)
                                     ─▶ crashed (no sign of life for `crash_after` seconds)
run.mark_preempting()     ─▶ preempting ─▶ finished | preempted (another exit code, or no sign of life)
```
Any sign of life of an ended run makes it running again, as a resume does.
"""

from __future__ import annotations

import json
import logging
from functools import partial
from typing import Any

from graphql import GraphQLError

from ckptsync.server.resolvers.accounts import ensure_project, find_project
from ckptsync.server.resolvers.context import Call, Row, global_id, parsed, resolves, row_id_of
from ckptsync.server.resolvers.filters import ordered, selected
from ckptsync.server.resolvers.paging import page

log = logging.getLogger(__name__)

STARTABLE_STATES = ("running", "pending")
UPDATABLE_STATES = {"pending": ("running", "failed", "crashed", "preempted"), "failed": ("pending", "running")}
MAX_RUN_NAME = 128

COLUMN_OF_INPUT = {
    "groupName": "group_name",
    "description": "description",
    "displayName": "display_name",
    "notes": "notes",
    "commit": "commit_hash",
    "host": "host",
    "jobProgram": "program",
    "jobRepo": "repo",
    "jobType": "job_type",
    "sweep": "sweep",
    "config": "config",
    "summaryMetrics": "summary",
}


def state_of(run: Row, now: float, crash_after: float) -> str:
    """The state as of now: a run that went silent while running has crashed, or was preempted if it had said so."""
    if run["state"] == "running" and now - run["heartbeat_at"] > crash_after:
        return "preempted" if run["preempting"] else "crashed"
    if run["state"] == "running" and run["preempting"]:
        return "preempting"
    return str(run["state"])


def find_run(call: Call, project: Row | None, name: str | None) -> Row | None:
    if project is None or name is None:
        return None
    return call.row("SELECT * FROM runs WHERE project_id = ? AND name = ?", project["id"], name)


def run_at(call: Call, entity_name: str | None, project_name: str | None, name: str | None) -> Row:
    """The run of that path; GraphQLError when there is none."""
    run = find_run(call, find_project(call, entity_name, project_name), name)
    if run is None:
        raise GraphQLError("no such run")
    return run


def run_by_id(call: Call, identifier: str) -> Row:
    run = call.row("SELECT * FROM runs WHERE id = ?", row_id_of("Run", identifier))
    if run is None:
        raise GraphQLError("no such run")
    return run


@resolves("Project.run", "Project.bucket")
def project_run(source: Row, call: Call, name: str, **_arguments: Any) -> Row | None:
    return find_run(call, source, name)


def _lookup(call: Call, run: Row, name: str) -> Any:
    """A run's value by the name that filters and orders use: a column, `config.x`, `summary_metrics.x` or `tags`."""
    head, _, rest = name.partition(".")
    if head == "config" and rest:
        return _descend(json.loads(run["config"]), rest.removesuffix(".value"), config=True)
    if head in ("summary_metrics", "summaryMetrics", "summary") and rest:
        return _descend(json.loads(run["summary"]), rest)
    if head == "tags":
        return json.loads(run["tags"])
    if head in ("display_name", "displayName"):
        return _display_name(run)
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


@resolves("Run.state")
def run_state(source: Row, call: Call) -> str:
    return state_of(source, call.now, call.crash_after)


@resolves("Run.project")
def run_project(source: Row, call: Call) -> Row | None:
    return call.row("SELECT * FROM projects WHERE id = ?", source["project_id"])


@resolves("Run.group")
def run_group(source: Row, _call: Call) -> Any:
    return source["group_name"]


@resolves("Run.commit")
def run_commit(source: Row, _call: Call) -> Any:
    return source["commit_hash"]


@resolves("Run.sweepName")
def run_sweep(source: Row, _call: Call) -> Any:
    return source["sweep"]


@resolves("Run.summaryMetrics")
def run_summary(source: Row, _call: Call) -> Any:
    return source["summary"]


@resolves("Run.tags")
def run_tags(source: Row, _call: Call) -> Any:
    return json.loads(source["tags"])


@resolves("Run.displayName")
def run_display_name(source: Row, _call: Call) -> str:
    return _display_name(source)


def _display_name(run: Row) -> str:
    return str(run["display_name"] or run["name"])


@resolves("Run.wandbConfig")
def run_wandb_config(source: Row, _call: Call, keys: list[str] | None = None) -> str | None:
    """The client's own part of the config. A client takes a run without the key `t` for one that never started."""
    inner = json.loads(source["config"]).get("_wandb", {})
    inner = inner.get("value", inner) if isinstance(inner, dict) else {}
    if not inner:
        return None
    return json.dumps(inner if keys is None else {key: inner[key] for key in keys if key in inner})


@resolves("Mutation.upsertBucket")
def upsert_run(_source: None, call: Call, given: Row) -> Row:
    """Make or change a run. By name it is a client's init or its config; by id only, an edit that is no sign of life."""
    changes = {column: given[name] for name, column in COLUMN_OF_INPUT.items() if given.get(name) is not None}
    for column in ("config", "summary"):
        if column in changes:
            parsed(changes[column], dict, column)
    if given.get("tags") is not None:
        changes["tags"] = json.dumps(given["tags"])
    if not given.get("name"):
        run = run_by_id(call, given.get("id") or "")
        call.update("runs", run["id"], **changes)
        return {"bucket": run_by_id(call, global_id("Run", run["id"])), "inserted": False}
    project = ensure_project(call, given.get("entityName"), given.get("modelName"))
    run_id, inserted = _started_run(call, project, given)
    call.update("runs", run_id, **changes)
    return {"bucket": run_by_id(call, global_id("Run", run_id)), "inserted": inserted}


def _started_run(call: Call, project: Row, given: Row) -> tuple[int, bool]:
    state = given.get("state") or "running"
    if state not in STARTABLE_STATES:
        raise GraphQLError("a run starts as running or pending")
    name = given["name"]
    if len(name) > MAX_RUN_NAME or not name.strip() or any(character in name for character in "/\\#?%:"):
        raise GraphQLError("invalid run id")
    run = find_run(call, project, name)
    if run is None:
        columns = {"project_id": project["id"], "name": name, "state": state}
        return call.insert("runs", **columns, created_at=call.now, heartbeat_at=call.now), True
    # Only an init says on which host it is (wandb 0.31.0, measured); what comes later, such as the config of a
    # run that is about to be preempted, must not start the run anew.
    if given.get("host") or given.get("state"):
        started = {"state": state, "exit_code": None, "preempting": 0, "stop_requested": 0}
        call.update("runs", run["id"], **started, heartbeat_at=call.now)
    return run["id"], False


@resolves("Mutation.stopRun")
def stop_run(_source: None, call: Call, given: Row) -> Row:
    call.update("runs", run_by_id(call, given["id"])["id"], stop_requested=1)
    return {"success": True}


@resolves("Mutation.notifyScriptableRunAlert")
def alert(_source: None, call: Call, given: Row) -> Row:
    """A run's alert: nobody to send it to, so it goes to the server's log."""
    run = run_at(call, given["entityName"], given["projectName"], given["runName"])
    log.warning("alert of run %s: %s", run["name"], given["title"], extra={"text": given["text"]})
    return {"success": True}


@resolves("Mutation.updateRunState")
def update_run_state(_source: None, call: Call, given: Row) -> Row:
    run = run_by_id(call, given["id"])
    current = state_of(run, call.now, call.crash_after)
    if current not in UPDATABLE_STATES.get(given["state"], ()):
        raise GraphQLError(f"a run cannot go from {current} to {given['state']}")
    call.update("runs", run["id"], state=given["state"], preempting=0)
    return {"success": True}
