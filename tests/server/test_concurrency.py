"""Many at once: the client's 128 uploads in parallel, and 50 clients."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.server import api
from tests.server.conftest import Client, run_client
from tests.server_process import ServerProcess

CLIENTS = 50


@pytest.mark.slow
def test_the_client_uploads_hundreds_of_files_at_once(server: ServerProcess, client: Client) -> None:
    reported = client(
        """
run = wandb.init(project="p", id="wide", settings=quiet)
path = folder(**{f"file{number}": os.urandom(20_000 + number) for number in range(400)})
run.log_artifact(artifact("wide", path)).wait()
run.finish()
found = wandb.Api().artifact("local/p/wide:latest")
out = pathlib.Path(found.download(str(folder()), skip_cache=True))
found.verify(str(out))
report(files=found.file_count, same=all((out / p.name).read_bytes() == p.read_bytes() for p in path.iterdir()))
"""
    )

    assert reported == {"files": 400, "same": True}


@pytest.mark.slow
def test_fifty_clients_save_at_once_and_nothing_is_lost(server: ServerProcess) -> None:
    start = threading.Barrier(CLIENTS)

    def work(number: int) -> None:
        start.wait()
        for turn in range(3):
            api.save(server, f"client-{number}", {"a": f"{number} {turn}".encode() * 5000})
            api.save(server, "everybody", {"a": f"{number} {turn}".encode() * 3000})

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(work, range(CLIENTS)))

    assert [len(api.versions(server, f"client-{number}")) for number in range(CLIENTS)] == [3] * CLIENTS
    everybody = api.versions(server, "everybody")
    assert [version["version"] for version in everybody] == [f"v{number}" for number in range(3 * CLIENTS - 1, -1, -1)]
    assert {content["a"] for content in (api.contents(server, version) for version in everybody)} == {
        f"{number} {turn}".encode() * 3000 for number in range(CLIENTS) for turn in range(3)
    }


def test_histories_that_stream_in_at_once_are_all_kept(server: ServerProcess) -> None:
    upsert = 'mutation UpsertBucket($name: String) { upsertBucket(input: {name: $name, modelName: "p"}) { bucket { id } } }'
    count = 'query Count($name: String!) { project(name: "p", entityName: "local") { run(name: $name) { historyLineCount } } }'

    def stream(number: int) -> int:
        name = f"stream-{number}"
        server.graphql(upsert, name=name)
        for offset in range(0, 30, 10):
            lines = ",".join(f'"{{\\"_step\\": {offset + line}}}"' for line in range(10))
            body = f'{{"files": {{"wandb-history.jsonl": {{"offset": {offset}, "content": [{lines}]}}}}}}'
            assert server.request("POST", f"/files/local/p/{name}/file_stream", data=body.encode())[0] == 200
        return int(api.data(server.graphql(count, name=name))["run"]["historyLineCount"])

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(stream, range(20))) == [30] * 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_file_of_more_than_2_gib_goes_up_in_parts_and_comes_down_in_ranges(tmp_path: Path) -> None:
    script = """
import hashlib
run = wandb.init(project="p", id="big", settings=quiet)
path = folder()
seed = os.urandom(1 << 20)
with open(path / "big.bin", "wb") as file:
    for number in range(2100):
        file.write(number.to_bytes(4, "big") + seed[4:])
run.log_artifact(artifact("big", path)).wait()
run.finish()
found = wandb.Api().artifact("local/p/big:latest")
out = pathlib.Path(found.download(str(folder()), skip_cache=True))
with open(path / "big.bin", "rb") as one, open(out / "big.bin", "rb") as other:
    same = hashlib.file_digest(one, "sha256").digest() == hashlib.file_digest(other, "sha256").digest()
report(same=same, size=found.size)
"""
    with ServerProcess(tmp_path / "data") as server:
        reported = run_client(script, server, tmp_path / "client", timeout=800)
        puts = [request for request in server.requests() if request["method"] == "PUT" and request["received"] > 50_000_000]
        ranges = [request for request in server.requests() if request["method"] == "GET" and request["status"] == 206]
        peak = Path(f"/proc/{server.pid}/status").read_text(encoding="ascii").partition("VmHWM:")[2].split()[0]

    assert reported == {"same": True, "size": 2100 * 1024 * 1024}
    assert len(puts) == 21
    assert len(ranges) == 21
    assert int(peak) < 400 * 1024
