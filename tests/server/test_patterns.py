"""Patterns that a client sends: none of them may keep the server from answering others, or from stopping."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.api import CREATE, data
from tests.server_process import ServerProcess

pytestmark = pytest.mark.timeout(60)

NAME = "a" * 60 + "!"
BACKTRACKS = "(a|aa)+$"
"""Takes a backtracking engine longer than a lifetime on NAME."""

RUNS = """query Runs($filters: JSONString) { project(name: "p", entityName: "local") {
    runs(filters: $filters) { edges { node { name } } } } }"""
FILES = """query Files($pattern: String) { project(name: "p", entityName: "local") {
    run(name: "r1") { files(pattern: $pattern) { edges { node { name } } } } } }"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server with one run that is called NAME and has a file of that name."""
    with ServerProcess(tmp_path / "data", faults=False) as process:
        run = {"name": "r1", "modelName": "p", "entityName": "local", "displayName": NAME}
        process.graphql("mutation($r: UpsertBucketInput!) { upsertBucket(input: $r) { inserted } }", r=run)
        file = {"entityName": "local", "projectName": "p", "runName": "r1", "files": [NAME]}
        query = "mutation($f: CreateRunFilesInput!) { createRunFiles(input: $f) { files { uploadUrl } } }"
        (announced,) = data(process.graphql(query, f=file))["files"]
        process.request("PUT", announced["uploadUrl"], data=b"content")
        yield process


def _runs(server: ServerProcess, **filters: Any) -> list[str]:
    project = data(server.graphql(RUNS, filters=json.dumps(filters)))
    return [edge["node"]["name"] for edge in project["runs"]["edges"]]


def test_a_regular_expression_that_backtracks_is_answered_at_once(server: ServerProcess) -> None:
    began = time.monotonic()

    assert _runs(server, display_name={"$regex": BACKTRACKS}) == []
    assert _runs(server, display_name={"$regex": "^(a|aa)+!$"}) == ["r1"]

    assert time.monotonic() - began < 5


def test_sigterm_ends_a_server_that_is_matching(server: ServerProcess) -> None:
    asking = threading.Thread(target=_runs, args=[server], kwargs={"display_name": {"$regex": BACKTRACKS}}, daemon=True)
    asking.start()
    while server.request("GET", "/healthz")[0] != 200:
        time.sleep(0.01)

    began = time.monotonic()
    server.stop()

    assert time.monotonic() - began < 10


@pytest.mark.parametrize("pattern", ["(a", "(?=a)a", r"(a)\1", "a" * 201, 7])
def test_a_pattern_that_cannot_be_matched_in_linear_time_is_an_error(server: ServerProcess, pattern: Any) -> None:
    answer = server.graphql(RUNS, filters=json.dumps({"display_name": {"$regex": pattern}}))

    assert "$regex" in answer["errors"][0]["message"]


def test_a_file_pattern_with_many_wildcards_is_answered_at_once(server: ServerProcess) -> None:
    began = time.monotonic()

    files = {
        pattern: data(server.graphql(FILES, pattern=pattern))["run"]["files"]["edges"]
        for pattern in ("%a" * 40 + "%b", "a%!", "a_")
    }

    assert [len(found) for found in files.values()] == [0, 1, 0]
    assert time.monotonic() - began < 5


def test_an_invalid_type_name_is_refused_at_once(server: ServerProcess) -> None:
    began = time.monotonic()
    given = {"entityName": "local", "projectName": "p", "artifactCollectionName": "c", "digest": "d" * 32}

    answer = server.graphql(CREATE, input={**given, "artifactTypeName": "a" * 60 + "!"})

    assert answer["errors"][0]["message"] == "invalid artifact type"
    assert time.monotonic() - began < 5
