"""Runs: found by path or id, their fields, and their state as a reader sees it.

```
upsertBucket, file_stream ─▶ running ─▶ finished (exit code 0) | failed (another exit code)
                                     ─▶ crashed (no heartbeat for `crash_after` seconds)
run.mark_preempting()     ─▶ preempting ─▶ finished | preempted (another exit code, or no heartbeat)
```
A heartbeat of an ended run makes it running again, as a resume does.
"""

from __future__ import annotations

import json
from typing import Any

from graphql import GraphQLError

from ckptsync.server.resolvers.context import Call, Row, resolves, row_id_of
from ckptsync.server.resolvers.projects import find_project


def state_of(run: Row, now: float, crash_after: float) -> str:
    """The current state: a running run without a heartbeat has crashed, or was preempted if it had announced that."""
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
    """The run of that path. Raises GraphQLError if there is none."""
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
    return display_name(source)


def display_name(run: Row) -> str:
    return str(run["display_name"] or run["name"])


@resolves("Run.wandbConfig")
def run_wandb_config(source: Row, _call: Call, keys: list[str] | None = None) -> str | None:
    """The client's own part of the config. To a client, a run without the key `t` never started."""
    inner = json.loads(source["config"]).get("_wandb", {})
    inner = inner.get("value", inner) if isinstance(inner, dict) else {}
    if not inner:
        return None
    return json.dumps(inner if keys is None else {key: inner[key] for key in keys if key in inner})
