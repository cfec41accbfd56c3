"""What the server refuses, hides and protects."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ckptsync import __version__
from tests.server import api
from tests.server.conftest import Client
from tests.server_process import ServerProcess

VIEWER = json.dumps({"query": "query Viewer { viewer { username } }"}).encode()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/graphql"),
        ("POST", "/files/local/p/r/file_stream"),
        ("GET", "/artifactsV2/default/local/p/c/a/b/0/n"),
        ("POST", "/_faults"),
        ("GET", "/_faults"),
    ],
)
@pytest.mark.parametrize("key", ["", "0" * 40, "é"])
def test_nothing_is_answered_without_the_key(server: ServerProcess, method: str, path: str, key: str) -> None:
    status, body = server.request(method, path, data=VIEWER if method == "POST" else None, key=key)

    assert status == 401
    assert server.api_key.encode() not in body


def test_basic_and_bearer_carry_the_key(server: ServerProcess) -> None:
    basic = base64.b64encode(f"api:{server.api_key}".encode()).decode()

    statuses = [
        server.request("POST", "/graphql", data=VIEWER, headers={"Authorization": value})[0]
        for value in (f"Basic {basic}", f"Bearer {server.api_key}", f"Digest {server.api_key}", "Basic !")
    ]

    assert statuses == [200, 200, 401, 401]


def test_health_needs_no_key_and_tells_no_secret(server: ServerProcess) -> None:
    status, body = server.request("GET", "/healthz", key="")

    assert status == 200
    assert json.loads(body) == {"status": "ok", "pid": server.pid, "version": __version__}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:1"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "192.168.0.1"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_other_hosts_and_origins_are_refused(server: ServerProcess, headers: dict[str, str], status: int) -> None:
    host = {"Host": urlsplit(server.url).netloc}
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    connection.putrequest("POST", "/graphql", skip_host=True)
    token = base64.b64encode(f"api:{server.api_key}".encode()).decode()
    for name, value in {**host, "Authorization": f"Basic {token}", "Content-Length": str(len(VIEWER)), **headers}.items():
        connection.putheader(name, value)
    connection.endheaders(VIEWER)

    assert connection.getresponse().status == status
    connection.close()


def test_the_servers_own_origin_is_fine(server: ServerProcess) -> None:
    assert server.request("POST", "/graphql", data=VIEWER, headers={"Origin": server.url})[0] == 200


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_key_and_folder_are_the_users_alone(server: ServerProcess) -> None:
    assert mode(server.data_dir) == 0o700
    assert mode(server.data_dir / "api-key") == 0o600
    assert mode(server.data_dir / "signing-secret") == 0o600
    assert mode(server.request_log) == 0o600


def test_the_key_has_the_shape_that_the_client_takes_and_stays_the_same(tmp_path: Path) -> None:
    keys = []
    for _ in range(2):
        with ServerProcess(tmp_path / "data") as server:
            keys.append(server.api_key)

    assert re.fullmatch(r"[0-9a-f]{40}", keys[0])
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/storage/",
        "/storage/content/",
        "/storage/content/../api-key",
        "/storage/content/..%2Fapi-key",
        "/files/",
        "/server.db",
    ],
)
def test_there_is_no_listing_and_no_way_out(server: ServerProcess, path: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()

    assert response.status in (403, 404, 405)
    assert server.api_key.encode() not in response.read()
    connection.close()


@pytest.mark.parametrize("rest", ["nonsense/b/0/n", "QXJ0aWZhY3Q6OTk5/b/0/n", "QXJ0aWZhY3Q6OTk5/", "../../../../api-key"])
def test_a_file_that_no_version_has_is_not_found(server: ServerProcess, rest: str) -> None:
    assert server.request("GET", f"/artifactsV2/default/local/p/c/{rest}")[0] == 404


@pytest.mark.parametrize("name", ["../../escape", "/etc/passwd", "a/../../b", "..", "nul\x00byte"])
def test_names_of_files_never_reach_the_file_system(server: ServerProcess, name: str) -> None:
    before = {path for path in server.data_dir.rglob("*") if "content" not in path.parts}

    api.save(server, "names", {name: f"content of {name}".encode()})

    assert api.contents(server, api.versions(server, "names")[0]) == {name: f"content of {name}".encode()}
    assert {path for path in server.data_dir.rglob("*") if "content" not in path.parts} == before


@pytest.mark.parametrize("name", ["../x", "a/b", "a:b", "", "x" * 129])
def test_collections_and_runs_have_plain_names(server: ServerProcess, name: str) -> None:
    upsert = "mutation UpsertBucket($name: String) { upsertBucket(input: {name: $name}) { bucket { id } } }"
    given = {"entityName": "local", "projectName": "p", "artifactTypeName": "model", "artifactCollectionName": name}

    assert "errors" in server.graphql(api.CREATE, input={**given, "digest": "0" * 32})
    assert "errors" in server.graphql(upsert, name=name)


def test_a_long_query_is_refused(server: ServerProcess) -> None:
    answer = server.graphql("query Long { viewer { " + "username " * 5000 + "} }")

    assert "too long" in answer["errors"][0]["message"]


def test_a_deep_query_is_refused(server: ServerProcess) -> None:
    levels = 12
    inner = 'entity { project(name: "p") { ' * levels + "name" + " } }" * levels
    answer = server.graphql(f'query Deep {{ project(name: "p") {{ {inner} }} }}')

    assert "too deeply" in answer["errors"][0]["message"]


def test_a_fragment_that_contains_itself_is_refused(server: ServerProcess) -> None:
    answer = server.graphql("query Loop { viewer { ...A } } fragment A on User { ...B } fragment B on User { ...A }")

    assert "errors" in answer


def test_a_large_query_body_is_refused(server: ServerProcess) -> None:
    assert server.request("POST", "/graphql", data=b" " * (33 * 1024 * 1024))[0] == 413


def test_a_gzip_bomb_is_refused(server: ServerProcess) -> None:
    bomb = gzip.compress(b" " * (80 * 1024 * 1024))

    status, _ = server.request("POST", "/files/local/p/r/file_stream", data=bomb, headers={"Content-Encoding": "gzip"})

    assert status == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"nonsense", b'{"query": 1}', b"[" * 100_000, b'{"query": "{ nothing }"}'])
def test_nonsense_is_a_bad_request(server: ServerProcess, body: bytes) -> None:
    assert server.request("POST", "/graphql", data=body)[0] == 400


@pytest.mark.parametrize("body", [b"[]", b"nonsense", b'{"files": 1}', b'{"files": {"wandb-history.jsonl": {"content": [1]}}}'])
def test_a_nonsense_file_stream_is_a_bad_request(server: ServerProcess, body: bytes) -> None:
    server.graphql('mutation UpsertBucket { upsertBucket(input: {name: "s", modelName: "p"}) { bucket { id } } }')

    assert server.request("POST", "/files/local/p/s/file_stream", data=body)[0] == 400


def test_a_file_stream_of_an_unknown_run_is_not_found(server: ServerProcess) -> None:
    assert server.request("POST", "/files/local/p/unknown/file_stream", data=b"{}")[0] == 404


def test_a_mutation_with_an_error_leaves_nothing_behind(server: ServerProcess) -> None:
    twice = """mutation Two { first: upsertBucket(input: {name: "half", modelName: "p"}) { bucket { id } }
        second: stopRun(input: {id: "bm9uc2Vuc2U="}) { success } }"""

    answer = server.graphql(twice)

    assert "errors" in answer
    query = 'query Run { project(name: "p", entityName: "local") { run(name: "half") { id } } }'
    found = api.data(server.graphql(query))
    assert found is None or found["run"] is None


def test_no_key_and_no_signature_reach_the_request_log(server: ServerProcess, client: Client) -> None:
    client("run = wandb.init(project='logged', settings=quiet); run.log({'a': 1}); run.finish()")
    api.save(server, "logged", {"a": b"logged"})

    text = server.request_log.read_text(encoding="utf-8")

    assert server.api_key not in text
    assert "signature=" not in text
    assert {"UpsertBucket", "CommitArtifact"} <= {request["operation"] for request in server.requests()}


def test_a_second_server_on_the_folder_ends_with_one_line_and_exit_code_7(server: ServerProcess) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "ckptsync.server", "--data-dir", str(server.data_dir), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert second.returncode == 7
    assert len(second.stderr.splitlines()) == 1
    assert str(server.data_dir) in second.stderr


def test_a_port_in_use_ends_with_one_line_and_exit_code_3(server: ServerProcess, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    second = subprocess.run(
        [sys.executable, "-m", "ckptsync.server", "--data-dir", str(tmp_path / "other"), "--port", port],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert second.returncode == 3
    assert len(second.stderr.splitlines()) == 1


def test_a_data_folder_that_is_there_keeps_its_mode_and_what_is_written_into_it_is_private(tmp_path: Path) -> None:
    data_dir = tmp_path / "shared"
    data_dir.mkdir()
    data_dir.chmod(0o1777)

    with ServerProcess(data_dir) as server:
        server.graphql("{ viewer { username } }")

        assert mode(data_dir) == 0o1777
        assert {path.name for path in data_dir.rglob("*") if path.is_file() and mode(path) & 0o077} == set()
