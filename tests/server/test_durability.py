"""kill -9 of the server loses nothing that was committed and keeps nothing that wasn't."""

from __future__ import annotations

import http.client
import random
import threading
import time
from pathlib import Path

from tests.server import api
from tests.server_process import ServerProcess

BROKEN = (http.client.HTTPException, OSError, AssertionError, ValueError)
ROUNDS = 4


def test_committed_versions_survive_kill_9_at_any_moment(tmp_path: Path) -> None:
    chance = random.Random(0)
    committed: dict[bytes, str] = {}
    server = ServerProcess(tmp_path / "data")
    for _ in range(ROUNDS):
        server.start()
        done = threading.Event()
        threads = [threading.Thread(target=_keep_saving, args=(server, chance.random(), committed, done)) for _ in range(4)]
        before = len(committed)
        for thread in threads:
            thread.start()
        while len(committed) < before + 2:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        server.kill()
        done.set()
        for thread in threads:
            thread.join()

    with server:
        found = {api.contents(server, version)["a"]: version["version"] for version in api.versions(server, "ck")}

    assert len(committed) > ROUNDS
    assert committed.items() <= found.items()
    assert len({*found.values()}) == len(found)


def _keep_saving(server: ServerProcess, seed: float, committed: dict[bytes, str], done: threading.Event) -> None:
    chance = random.Random(seed)
    while not done.is_set():
        content = chance.randbytes(200_000)
        try:
            artifact = api.save(server, "ck", {"a": content})["data"]["commitArtifact"]["artifact"]
        except BROKEN:
            continue
        committed[content] = f"v{artifact['versionIndex']}"


def test_a_start_sweeps_what_a_killed_server_left(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data")
    with server:
        api.save(server, "kept", {"a": b"kept"})
    orphan = server.data_dir / "content" / "md5" / "00" / ("0" * 32)
    orphan.write_bytes(b"nothing refers to this")
    (server.data_dir / "incoming" / "half").write_bytes(b"half a body")

    with server:
        kept = api.contents(server, api.versions(server, "kept")[0])

    assert kept == {"a": b"kept"}
    assert not orphan.exists()
    assert list((server.data_dir / "incoming").iterdir()) == []


def test_links_outlive_a_restart(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data")
    with server:
        url = api.announce(server, api.create(server, "links"), "a", b"abc")["uploadUrl"]

    with server:
        assert api.put(server, url, b"abc") == 200


def test_versions_past_their_ttl_are_gone_unless_they_are_linked(tmp_path: Path) -> None:
    link = """mutation LinkArtifact($id: ID!) { linkArtifact(input: {artifactID: $id, artifactPortfolioName: "portfolio",
        entityName: "local", projectName: "p"}) { versionIndex } }"""
    find = 'query Find($name: String!) { project(name: "p", entityName: "local") { artifact(name: $name) { id } } }'
    server = ServerProcess(tmp_path / "data")
    with server:
        api.save(server, "short", {"a": b"short"}, ttlDurationSeconds=1)
        api.save(server, "linked", {"a": b"linked"}, ttlDurationSeconds=1)
        api.save(server, "long", {"a": b"long"}, ttlDurationSeconds=1000)
        api.save(server, "endless", {"a": b"endless"}, ttlDurationSeconds=-2)
        artifact_id = api.data(server.graphql(find, name="linked:v0"))["artifact"]["id"]
        api.data(server.graphql(link, id=artifact_id))
    time.sleep(1.1)

    with server:
        deadline = time.monotonic() + 10
        while api.versions(server, "short") and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [name for name in ("short", "linked", "long", "endless") if api.versions(server, name)]

    assert left == ["linked", "long", "endless"]
