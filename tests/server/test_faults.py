"""Each injected fault does what its name says, to the requests that its rule names and to no others."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server import api
from tests.server.conftest import Client
from tests.server_process import ServerProcess

VIEWER = "query Viewer { viewer { username } }"
BROKEN = (http.client.HTTPException, OSError)


@pytest.fixture(autouse=True)
def no_faults_left(server: ServerProcess) -> Iterator[None]:
    yield
    server.faults([])


def _fault(action: dict[str, Any], **match: str) -> dict[str, Any]:
    return {"match": match, "action": action}


def test_without_the_flag_there_is_no_fault_interface(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", faults=False) as server:
        assert server.request("GET", "/_faults")[0] == 404


def test_a_rule_hits_after_its_skip_and_as_often_as_its_count(server: ServerProcess) -> None:
    server.faults([{"match": {"operation": "Viewer"}, "skip": 1, "count": 2, "action": {"status": 503}}])

    errors = ["errors" in server.graphql(VIEWER) for _ in range(5)]

    assert errors == [False, True, True, False, False]
    assert server.fault_hits() == [2]


def test_a_rule_hits_only_what_it_names(server: ServerProcess) -> None:
    server.faults([
        _fault({"status": 500}, operation="CommitArtifact"),
        _fault({"status": 501}, path="^/storage/", method="GET"),
    ])  # fmt: skip

    statuses = [
        server.request("POST", "/graphql", data=json.dumps({"query": VIEWER}).encode())[0],
        server.request("GET", "/storage/content/md5-0")[0],
        server.request("PUT", "/storage/content/md5-0", data=b"")[0],
        server.request("GET", "/healthz")[0],
    ]

    assert statuses == [200, 501, 403, 200]


def test_a_status_comes_with_its_headers(server: ServerProcess) -> None:
    server.faults([_fault({"status": 429, "headers": {"Retry-After": "7"}}, path="/healthz")])

    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    connection.request("GET", "/healthz")
    response = connection.getresponse()

    assert (response.status, response.headers["Retry-After"]) == (429, "7")
    response.read()
    connection.close()


def test_a_delay_holds_the_answer_back(server: ServerProcess) -> None:
    server.faults([_fault({"delay": 0.5}, path="/healthz")])
    started = time.monotonic()

    status, _ = server.request("GET", "/healthz")

    assert status == 200
    assert time.monotonic() - started >= 0.5


def test_throttling_slows_the_way_up_and_the_way_down(server: ServerProcess) -> None:
    content = b"x" * 100_000
    url = api.announce(server, api.create(server, "slow"), "a", content)["uploadUrl"]
    server.faults([_fault({"throttle": 200_000}, path="^/storage/")])

    started = time.monotonic()
    api.put(server, url, content)
    upload = time.monotonic() - started
    server.faults([])
    api.save(server, "slow", {"a": content})
    link = api.versions(server, "slow")[0]["node"]["files"]["edges"][0]["node"]["directUrl"]
    server.faults([_fault({"throttle": 200_000}, path="^/storage/")])
    started = time.monotonic()
    _, body = server.request("GET", link)

    assert upload >= 0.4
    assert time.monotonic() - started >= 0.4
    assert body == content


def test_dropped_before_leaves_no_answer_and_no_work(server: ServerProcess) -> None:
    server.faults([_fault({"drop": "before"}, operation="CreateArtifact")])

    with pytest.raises(BROKEN):
        api.create(server, "dropped-before")

    server.faults([])
    assert api.versions(server, "dropped-before") == []


def test_dropped_after_leaves_no_answer_but_the_work_is_done(server: ServerProcess) -> None:
    artifact_id = api.create(server, "dropped-after")
    api.put_manifest(server, artifact_id, {})
    server.faults([_fault({"drop": "after"}, operation="CommitArtifact")])

    with pytest.raises(BROKEN):
        server.graphql(api.COMMIT, id=artifact_id)

    server.faults([])
    assert len(api.versions(server, "dropped-after")) == 1


def test_dropped_during_an_upload_keeps_nothing(server: ServerProcess) -> None:
    content = b"y" * 4_000_000
    artifact_id = api.create(server, "dropped-up")
    url = api.announce(server, artifact_id, "a", content)["uploadUrl"]
    server.faults([_fault({"drop": "during"}, method="PUT")])

    with pytest.raises(BROKEN):
        api.put(server, url, content)

    server.faults([])
    assert api.announce(server, artifact_id, "a", content)["uploadUrl"] is not None
    assert list((server.data_dir / "incoming").iterdir()) == []


def test_dropped_during_a_download_is_a_short_body(server: ServerProcess) -> None:
    api.save(server, "dropped-down", {"a": b"z" * 100_000})
    link = api.versions(server, "dropped-down")[0]["node"]["files"]["edges"][0]["node"]["directUrl"]
    server.faults([_fault({"drop": "during"}, method="GET", path="^/storage/")])

    with pytest.raises(http.client.IncompleteRead) as caught:
        server.request("GET", link)

    assert 0 < len(caught.value.partial) < 100_000


def test_a_corrupted_body_has_the_right_length_and_one_wrong_byte(server: ServerProcess) -> None:
    content = b"0123456789"
    api.save(server, "corrupt", {"a": content})
    link = api.versions(server, "corrupt")[0]["node"]["files"]["edges"][0]["node"]["directUrl"]
    server.faults([_fault({"corrupt": True}, method="GET", path="^/storage/")])

    _, body = server.request("GET", link)

    assert len(body) == len(content)
    assert sum(one != other for one, other in zip(body, content, strict=True)) == 1


def test_graphql_errors_come_in_an_answer_with_status_200(server: ServerProcess) -> None:
    server.faults([_fault({"graphql_errors": "injected: quota"}, operation="Viewer")])

    assert server.graphql(VIEWER)["errors"] == [{"message": "injected: quota"}]


@pytest.mark.parametrize("rule", [{}, {"action": {"explode": 1}}, {"action": {"status": 500}, "match": {"host": "x"}}, 5])
def test_a_rule_that_cannot_be_understood_is_refused(server: ServerProcess, rule: Any) -> None:
    assert server.request("POST", "/_faults", data=json.dumps([rule]).encode())[0] == 400


def test_an_injected_fault_stands_in_the_request_log_with_its_operation(server: ServerProcess) -> None:
    server.faults([_fault({"status": 503}, operation="Viewer")])

    server.graphql(VIEWER)

    assert [request["status"] for request in server.requests() if request["operation"] == "Viewer"][-1] == 503


@pytest.mark.slow
def test_the_client_survives_faults_that_pass(server: ServerProcess, client: Client) -> None:
    server.faults([
        {"match": {"method": "PUT"}, "count": 2, "action": {"status": 503}},
        {"match": {"operation": "CreateArtifactFiles"}, "count": 1, "action": {"status": 502}},
        {"match": {"path": "file_stream"}, "count": 1, "action": {"drop": "after"}},
    ])  # fmt: skip

    reported = client(
        """
fast = wandb.Settings(console="off", silent=True, x_graphql_retry_wait_min_seconds=0.1, x_graphql_retry_wait_max_seconds=0.2,
    x_file_transfer_retry_wait_min_seconds=0.1, x_file_transfer_retry_wait_max_seconds=0.2,
    x_file_stream_retry_wait_min_seconds=0.1, x_file_stream_retry_wait_max_seconds=0.2)
run = wandb.init(project="p", id="faulty", settings=fast)
run.log({"loss": 1})
run.log_artifact(artifact("faulty", folder(a__bin="survives"))).wait()
run.finish()
found = wandb.Api().artifact("local/p/faulty:latest")
report(text=(pathlib.Path(found.download(str(folder()), skip_cache=True)) / "a.bin").read_text(), version=found.version)
report(rows=len(list(wandb.Api().run("local/p/faulty").scan_history())))
"""
    )

    assert reported == {"text": "survives", "version": "v0", "rows": 1}


def test_the_client_finds_a_file_without_its_link(server: ServerProcess, client: Client) -> None:
    api.save(server, "fallback", {"sub/a": b"found by digest"})
    server.faults([{"match": {"method": "GET", "path": "^/storage/"}, "skip": 1, "action": {"status": 403}}])

    reported = client(
        """
found = wandb.Api().artifact("local/p/fallback:v0")
report(text=(pathlib.Path(found.download(str(folder()), skip_cache=True)) / "sub" / "a").read_text())
"""
    )

    assert reported == {"text": "found by digest"}
    assert any(request["path"].startswith("/artifactsV2/") and request["status"] == 200 for request in server.requests())
