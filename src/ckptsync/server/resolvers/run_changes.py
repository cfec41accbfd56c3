"""Mutations of runs: created and changed by upsertBucket, stopped, alerts, states."""

from __future__ import annotations

import json
import logging

from graphql import GraphQLError

from ckptsync.server.resolvers.context import Call, Row, global_id, parsed, resolves
from ckptsync.server.resolvers.projects import ensure_project
from ckptsync.server.resolvers.runs import find_run, run_at, run_by_id, state_of

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


@resolves("Mutation.upsertBucket")
def upsert_run(_source: None, call: Call, given: Row) -> Row:
    """Create or change a run. A request by name comes from the run's own client, one by id edits it."""
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
    # Only an init names a host (wandb 0.31.0, measured). Later updates, such as the config of a run that is about to be
    # preempted, must not restart the run.
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
    """Log the alert of a run."""
    run = run_at(call, given["entityName"], given["projectName"], given["runName"])
    log.warning("alert of run %s: %s", run["name"], given["title"], extra={"text": given["text"]})
    return {"success": True}


@resolves("Mutation.updateRunState")
def update_run_state(_source: None, call: Call, given: Row) -> Row:
    run = run_by_id(call, given["id"])
    current = state_of(run, call.now, call.crash_after)
    if current not in UPDATABLE_STATES.get(given["state"], ()):
        raise GraphQLError(f"invalid state transition from {current!r} to {given['state']!r}")
    call.update("runs", run["id"], state=given["state"], preempting=0)
    return {"success": True}
