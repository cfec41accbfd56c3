"""From a version in the store to verified files: 2 GB in three large files and some small ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench import minimal, outward
from tests.bench.bed import PROJECT, Bed, BenchServer, Helper, Md5Server, command
from tests.bench.payload import LARGE, Payload
from tests.bench.rounds import MEMORY, interleaved, timed
from tests.bench.row import Row, compared

NAME = f"checkpoint-{outward.RUN}"


def rows(bed: Bed) -> Iterator[Row]:
    """With XXH128, which the embedded server offers, and with MD5, which may be all that W&B's own service accepts."""
    yield from _rows(bed, BenchServer, "")
    yield from _rows(bed, Md5Server, ", MD5 only")


def _rows(bed: Bed, kind: type[BenchServer], note: str) -> Iterator[Row]:
    root = bed.folder("pulling")
    payload = Payload(root / "out", {name: size // 10 if bed.quick else size for name, size in LARGE.items()})
    payload.make()
    with kind(root / "data", faults=False) as server:
        bed.ckptsync(server, "push", payload.folder, "--run-id", outward.RUN)
        environment = bed.environment(server, WANDB_CACHE_DIR=str(root / "cache"), WANDB_DATA_DIR=str(root / "staging"))
        helper = Helper(environment, root)
        files = helper.ask(op="shape", name=NAME, private=str(root / "private"))
        large = {path: (f"{algorithm_of(server, digest)}-{digest}", size) for path, (_, digest, size) in files.items()}
        pull = Pull(server, environment, root, large)
        found = interleaved({"ours": pull.ours, "wandb": pull.wandb, "ranges": pull.in_ranges}, bed.rounds, memory=MEMORY)
        into = str(root / "fetched")
        half = [path for path in LARGE if path != "model-00001-of-00002.safetensors"]

        def fetch(keep: list[str]) -> float:
            return float(helper.ask(op="fetch", name=NAME, into=into, private=str(root / "private"), keep=keep))

        fetch([])
        halves = interleaved({"empty": lambda: fetch([]), "half": lambda: fetch(half)}, bed.rounds, memory=MEMORY)
        helper.close()
    shutil.rmtree(root)
    size = outward.payload_size(payload.sizes)
    what = f"pull and verify {size}, the whole command{note}"
    yield compared("pulling", what, "wandb artifact get + verify", found["ours"], found["wandb"], target=0.65)
    yield compared("pulling", what, "8 ranges of 32 MB + md5", found["ours"], found["ranges"], target=1.2)
    what = f"fetch {size} with half of it there{note}"
    yield compared("pulling", what, "the same, into an empty folder", halves["half"], halves["empty"], target=0.6)


def algorithm_of(server: BenchServer, digest: str) -> str:
    """The digest algorithm under which the server stores a content."""
    return next(path.parts[-3] for path in (server.data_dir / "content").glob(f"*/*/{digest}"))


class Pull:
    """The contenders, each into an empty folder."""

    def __init__(self, server: BenchServer, environment: dict[str, str], root: Path, files: dict[str, tuple[str, int]]) -> None:
        self._server = server
        self._environment = environment
        self._files = files
        self._target = root / "pulled"
        self._cache = root / "cache"

    def ours(self) -> float:
        """`ckptsync pull`: start-up, download, verification, validation."""
        self._clear()
        return timed(lambda: self._run(command("pull", outward.RUN, self._target)))

    def wandb(self) -> float:
        """`wandb artifact get`, then every file against its digest, on one thread."""
        self._clear()
        program = str(Path(sys.executable).with_name("wandb"))
        get = [program, "artifact", "get", f"local/{PROJECT}/{NAME}:latest", "--root", str(self._target)]

        def both() -> None:
            self._run(get)
            self._verify()

        return timed(both)

    def in_ranges(self) -> float:
        """The minimum: parallel ranges, then MD5."""
        self._clear()
        self._target.mkdir()
        return timed(lambda: minimal.get_in_ranges(self._server, list(self._files.values()), self._target))

    def _run(self, words: list[str]) -> None:
        done = subprocess.run(words, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])

    def _verify(self) -> None:
        for path, (key, _) in self._files.items():
            algorithm, _, digest = key.partition("-")
            if minimal.digest([self._target / path], algorithm).hexdigest() != digest:
                raise RuntimeError(f"{path} does not hold")

    def _clear(self) -> None:
        for folder in (self._target, self._cache):
            shutil.rmtree(folder, ignore_errors=True)
        os.sync()
