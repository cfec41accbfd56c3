"""How long commands that only read take, compared with an interpreter that does nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import checkpoints
from tests.bench.bed import Bed, command
from tests.bench.rounds import interleaved, timed
from tests.bench.row import Row, judged

ROUNDS = 3
"""Times the usual number of rounds, since these commands are short."""


def rows(bed: Bed) -> Iterator[Row]:
    """The seconds that `--help` and `status` take beyond `python -c pass`."""
    output_dir = bed.folder("starting")
    checkpoints.make_checkpoint(output_dir, 10)
    environment = bed.environment()

    def run(*words: str | Path) -> float:
        return timed(lambda: subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL))

    found = interleaved(
        {
            "pass": lambda: run(sys.executable, "-c", "pass"),
            "--help": lambda: run(*command("--help")),
            "status": lambda: run(*command("status", output_dir)),
        },
        bed.rounds * ROUNDS,
    )
    floor = statistics.median(found["pass"])
    for words in ("--help", "status"):
        more = [seconds - floor for seconds in found[words]]
        yield judged("starting", f"ckptsync {words}, beyond python -c pass", more, target=0.15, unit="s")
