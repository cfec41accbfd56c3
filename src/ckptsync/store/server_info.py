"""What a W&B server reports about itself, a key and a project. Plain HTTP, without the wandb client."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from ckptsync.checkpoint import Run
from ckptsync.config import Connection
from ckptsync.errors import RejectedError, TransientStoreError

TIMEOUT = 10.0

_QUERY = """query ServerInfo($entity: String, $project: String) { viewer { username entity teams { edges { node { name } } } }
    project(name: $project, entityName: $entity) { id } }"""
_VERSION = "query Version { serverInfo { latestLocalVersionInfo { versionOnThisInstanceString } } }"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The answer. `skew`: seconds by which the server's clock is ahead of the local one, or None; `seconds`: the time it took."""

    server: str
    user: str
    entity: str
    entities: tuple[str, ...]
    project_exists: bool
    skew: float | None
    seconds: float


def ask(connection: Connection, run: Run) -> ServerInfo:
    """Ask once, and once more for the version. Raises TransientStoreError without an answer and RejectedError for a wrong key."""
    import requests

    began = time.time()
    try:
        answer = _post(connection, _QUERY, {"entity": run.entity, "project": run.project})
    except requests.RequestException as error:
        raise TransientStoreError(f"{connection.base_url} does not answer: {type(error).__name__}") from error
    ended = time.time()
    if answer.status_code in (401, 403):
        raise RejectedError(f"{connection.base_url} refuses the key")
    viewer = _data(answer).get("viewer")
    if answer.status_code >= 400 or viewer is None:
        raise TransientStoreError(f"{connection.base_url} answers, but not as a W&B server: status {answer.status_code}")
    teams = [edge["node"]["name"] for edge in (viewer.get("teams") or {}).get("edges") or []]
    date = answer.headers.get("Date")
    return ServerInfo(
        server=_version(connection),
        user=str(viewer.get("username")),
        entity=run.entity or str(viewer.get("entity")),
        entities=tuple(dict.fromkeys([str(viewer.get("entity")), *teams])),
        project_exists=bool(_data(answer).get("project")),
        skew=parsedate_to_datetime(date).timestamp() - (began + ended) / 2 if date else None,
        seconds=ended - began,
    )


def _version(connection: Connection) -> str:
    """Self-hosted servers and the embedded one report it; W&B's service doesn't."""
    import requests

    with contextlib.suppress(requests.RequestException, ValueError, KeyError, TypeError):
        known = _data(_post(connection, _VERSION, {}))["serverInfo"]["latestLocalVersionInfo"]
        return f"W&B Server {known['versionOnThisInstanceString']}"
    with contextlib.suppress(requests.RequestException, ValueError, KeyError, TypeError):
        return f"ckptsync server {requests.get(f'{connection.base_url}/healthz', timeout=TIMEOUT).json()['version']}"
    return "which doesn't tell its version"


def _post(connection: Connection, query: str, variables: dict[str, Any]) -> Any:
    import requests

    body: Any = {"query": query, "variables": variables}
    return requests.post(f"{connection.base_url}/graphql", json=body, auth=("api", connection.api_key), timeout=TIMEOUT)


def _data(answer: Any) -> dict[str, Any]:
    try:
        found = answer.json()["data"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
