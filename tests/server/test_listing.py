"""Long lists: what a page costs, and what it shows while the list changes."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.api import data, save
from tests.server_process import ServerProcess

RUNS = """query Runs($filters: JSONString, $order: String, $first: Int, $after: String) {
    project(name: "p", entityName: "local") { runCount(filters: $filters)
        runs(filters: $filters, order: $order, first: $first, after: $after) {
            totalCount edges { cursor node { name config } } pageInfo { endCursor hasNextPage } } } }"""
CONFIG = json.dumps({f"parameter_{number}": {"value": number / 2} for number in range(100)})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server with an empty project."""
    with ServerProcess(tmp_path / "data") as process:
        process.graphql('mutation { upsertModel(input: {name: "p", entityName: "local"}) { inserted } }')
        yield process


def _add(server: ServerProcess, name: str, created_at: float, summary: dict[str, Any] | None = None, config: str = "{}") -> None:
    _add_many(server, [(name, created_at, created_at, json.dumps(summary or {}), config)])


def _add_many(server: ServerProcess, runs: list[tuple[Any, ...]]) -> None:
    connection = sqlite3.connect(server.data_dir / "server.db", timeout=60)
    with connection:
        connection.executemany(
            "INSERT INTO runs (project_id, name, created_at, heartbeat_at, summary, config) VALUES (1, ?, ?, ?, ?, ?)", runs
        )
    connection.close()


def _page(server: ServerProcess, after: str | None = None, first: int = 2, order: str = "+created_at", **filters: Any) -> Any:
    project = data(server.graphql(RUNS, filters=json.dumps(filters), order=order, first=first, after=after))
    return project["runs"] | {"count": project["runCount"]}


def _all(server: ServerProcess, first: int, order: str, **filters: Any) -> list[str]:
    """The names of all pages, in order."""
    names, after = [], None
    while True:
        page = _page(server, after, first, order, **filters)
        names += [edge["node"]["name"] for edge in page["edges"]]
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            return names


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_page_costs_the_same_however_many_runs_there_are(server: ServerProcess) -> None:
    _add_many(server, [(f"r{number}", number, number, "{}", CONFIG) for number in range(10_000)])
    before = _processor_seconds(server.pid)

    after, names = None, []
    for _ in range(20):
        page = _page(server, after, 50)
        after = page["pageInfo"]["endCursor"]
        names += [edge["node"]["name"] for edge in page["edges"]]

    assert names == [f"r{number}" for number in range(1_000)]
    assert page["count"] == page["totalCount"] == 10_000
    assert _processor_seconds(server.pid) - before < 2


def test_runs_that_come_and_go_meanwhile_neither_repeat_nor_hide_others(server: ServerProcess) -> None:
    for number in range(6):
        _add(server, f"r{number}", 100 + number)
    first = _page(server)
    _add(server, "earlier", 50)
    connection = sqlite3.connect(server.data_dir / "server.db", timeout=60)
    with connection:
        connection.execute("DELETE FROM runs WHERE name = 'r1'")
    connection.close()

    second = _page(server, first["pageInfo"]["endCursor"], first=10)

    assert [edge["node"]["name"] for edge in second["edges"]] == ["r2", "r3", "r4", "r5"]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("+summary_metrics.loss", ["low", "high", "text", "none1", "none2"]),
        ("-summary_metrics.loss", ["text", "high", "low", "none2", "none1"]),
        ("-created_at", ["none2", "none1", "text", "low", "high"]),
        ("display_name", ["high", "low", "none1", "none2", "text"]),
    ],
)
def test_every_order_is_the_same_in_pages_of_any_size(server: ServerProcess, order: str, expected: list[str]) -> None:
    losses: dict[str, dict[str, Any]] = {
        "high": {"loss": 10**30},
        "low": {"loss": 1.5},
        "text": {"loss": "NaN"},
        "none1": {},
        "none2": {},
    }
    for created_at, (name, summary) in enumerate(losses.items()):
        _add(server, name, created_at, summary)

    assert [_all(server, first, order) for first in (1, 2, 3, 100)] == [expected] * 4


def test_filters_count_and_page_the_same_runs(server: ServerProcess) -> None:
    for number in range(9):
        _add(server, f"r{number}", number, {"acc": number / 10}, json.dumps({"lr": {"value": number % 3}}))

    assert _all(server, 2, "-summary_metrics.acc", **{"config.lr": 1}) == ["r7", "r4", "r1"]
    either: dict[str, Any] = {"$or": [{"config.lr.value": 2}, {"summary_metrics.acc": {"$lt": 0.1}}]}
    assert _all(server, 2, "+name", **either) == ["r0", "r2", "r5", "r8"]
    neither: dict[str, Any] = {"$nor": [{"config.lr": 1}, {"name": "r0"}]}
    assert _page(server, **neither)["count"] == 5


@pytest.mark.parametrize(
    "cursor", ["nonsense", "WzFd", "W10=", "eyJhIjoxfQ==", "MTI=", "WzEsIDk5OTk5OTk5OTk5OTk5OTk5OTk5XQ==", "W1tdLCAxXQ=="]
)
def test_a_cursor_that_the_server_did_not_give_is_an_error(server: ServerProcess, cursor: str) -> None:
    answer = server.graphql(RUNS, after=cursor)

    assert answer["errors"][0]["message"] == "invalid cursor"


def test_a_filter_with_an_unknown_operator_is_an_error(server: ServerProcess) -> None:
    _add(server, "r", 1)

    answer = server.graphql(RUNS, filters=json.dumps({"name": {"$near": 1}}))

    assert answer["errors"][0]["message"] == "unknown filter operator $near"


def test_a_time_is_filtered_as_the_text_that_clients_see(server: ServerProcess) -> None:
    for number in range(3):
        _add(server, f"r{number}", 1_700_000_000 + number * 86_400)

    later: dict[str, Any] = {"created_at": {"$gt": "2023-11-15"}}
    between: dict[str, Any] = {
        "$and": [{"createdAt": {"$gte": "2023-11-15T22:13:20Z"}}, {"createdAt": {"$lt": "2023-11-16T00:00:00"}}]
    }

    assert _all(server, 1, "-created_at", **later) == ["r2", "r1"]
    assert _all(server, 1, "-created_at", **between) == ["r1"]


def test_versions_are_filtered_by_their_tags_aliases_and_metadata(server: ServerProcess) -> None:
    for number in range(4):
        more: dict[str, Any] = {"tags": [{"tagName": "good"}]} if number % 2 else {}
        aliases = [{"artifactCollectionName": "ck", "alias": f"step-{number}"}]
        save(server, "ck", {"a": str(number).encode()}, metadata=json.dumps({"step": number}), aliases=aliases, **more)
    query = """query($filters: JSONString, $after: String, $order: String) { project(name: "p", entityName: "local") {
        artifactCollection(name: "ck") { artifacts(filters: $filters, first: 1, after: $after, order: $order) { totalCount
            edges { version } pageInfo { endCursor hasNextPage } } } } }"""

    def found(order: str, **filters: Any) -> list[str]:
        versions, after = [], None
        while True:
            answer = data(server.graphql(query, filters=json.dumps(filters), after=after, order=order))
            page = answer["artifactCollection"]["artifacts"]
            versions += [edge["version"] for edge in page["edges"]]
            after = page["pageInfo"]["endCursor"]
            if not page["pageInfo"]["hasNextPage"]:
                assert page["totalCount"] == len(versions)
                return versions

    assert found("", tags="good") == ["v3", "v1"]
    assert found("+versionIndex", alias={"$in": ["step-0", "step-2"]}) == ["v0", "v2"]
    assert found("-metadata.step", **{"metadata.step": {"$gte": 1}}) == ["v3", "v2", "v1"]
