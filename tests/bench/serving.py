"""The embedded server: uploads, downloads, listings, its memory, and 50 clients at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench import minimal, processes, publishing
from tests.bench.bed import Bed, BenchServer, Helper
from tests.bench.rounds import MEMORY, interleaved, timed
from tests.bench.row import Row, compared, judged

CLIENTS = 50
VERSIONS = 1000


def rows(bed: Bed) -> Iterator[Row]:
    """One file of 2 GB up and down, then many clients, then many versions."""
    size = 200 if bed.quick else 2000
    root = bed.folder("serving")
    source = root / "source"
    with source.open("wb") as file:
        for _ in range(size):
            file.write(os.urandom(10**6))
    with bed.server() as server:
        known = minimal.md5([source])
        key = f"md5-{known.hexdigest()}"

        def put() -> float:
            server.forget()
            return timed(lambda: minimal.put(server, [source], known))

        with processes.sampled(server.pid) as memory:
            up = interleaved({"put": put, "md5": lambda: timed(lambda: minimal.md5([source]))}, bed.rounds, memory=MEMORY)
            down = interleaved(
                {
                    "get": lambda: _renewed(root / "got", lambda path: minimal.get(server, key, path, size * 10**6)),
                    "copy": lambda: _renewed(root / "got", lambda path: shutil.copyfile(source, path)),
                },
                bed.rounds,
                memory=MEMORY,
            )
            crowd = interleaved(
                {
                    "crowd": lambda: timed(lambda: _crowd(server, key, root, size)),
                    "one": lambda: _renewed(root / "got", lambda path: minimal.get(server, key, path, size * 10**6)),
                },
                bed.rounds,
                memory=MEMORY,
            )
    gb = f"{size / 1000:g} GB"
    yield compared("serving", f"upload of {gb}", "md5 of it on one thread", up["put"], up["md5"], target=2.0)
    yield compared("serving", f"download of {gb}", "a plain copy of the file", down["get"], down["copy"], target=2.0)
    yield compared("serving", f"{CLIENTS} clients, {gb} together", "one client", crowd["crowd"], crowd["one"], target=None)
    yield judged("serving", "server's memory meanwhile, at most", [memory.peak], target=150, unit="MB")
    shutil.rmtree(root)
    yield _listing(bed)


def _renewed(path: Path, fill: object) -> float:
    path.unlink(missing_ok=True)
    os.sync()
    assert callable(fill)
    return timed(lambda: fill(path))


def _crowd(server: BenchServer, key: str, root: Path, size: int) -> None:
    """Each client requests its own part; together they download the whole file."""
    target = root / "crowd"
    with target.open("wb") as file:
        file.truncate(size * 10**6)
    part = size * 10**6 // CLIENTS
    with ThreadPoolExecutor(CLIENTS) as clients:
        for done in [
            clients.submit(minimal.fetch_range, server.get_link(key), target, n * part, (n + 1) * part) for n in range(CLIENTS)
        ]:
            done.result()
    target.unlink()


def _listing(bed: Bed) -> Row:
    root = bed.folder("listing")
    count = 50 if bed.quick else VERSIONS
    with bed.server() as server:
        for number in range(count):
            publishing.publish(server, "many", number)
        helper = Helper(bed.environment(server), root)
        seconds = []
        for _ in range(bed.rounds):
            found, took = helper.ask(op="versions", name="many", private=str(root / "private"))
            if found != count:
                raise RuntimeError(f"{found} of {count} versions listed")
            seconds.append(took)
        helper.close()
    shutil.rmtree(root)
    return judged("serving", f"{count} versions listed by the wandb client", seconds, target=1.0, unit="s")
