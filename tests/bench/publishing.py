"""Creates versions without the client, in any number: three small files each."""

from __future__ import annotations

from tests.bench.bed import PROJECT, BenchServer
from tests.server import api


def publish(server: BenchServer, name: str, number: int) -> None:
    """Commit one more version of an artifact in the bench's project."""
    files = {f"file-{each}": f"{number} {each}".encode() for each in range(3)}
    answer = api.save(server, name, files, projectName=PROJECT, metadata='{"ckptsync": {"step": 1}}')
    if "errors" in answer:
        raise RuntimeError(str(answer["errors"]))
