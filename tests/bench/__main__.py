"""`python -m tests.bench`: measure, print the table, and with --json write it to a file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.bed import Bed
from tests.bench.row import Row
from tests.bench.table import show

NOUNS = ("starting", "idling", "pinning", "serving", "outward", "pulling", "training", "memory", "sharing", "growing")
VERSIONS = ("ckptsync", "wandb", "transformers", "torch", "uvicorn", "starlette")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite. Returns 0 even if a target is missed: the table shows that."""
    options = _options(arguments)
    scratch = Path(tempfile.mkdtemp(prefix="ckptsync-bench-", dir=options.scratch))
    disk = Path(tempfile.mkdtemp(prefix="ckptsync-bench-", dir=options.disk))
    bed = Bed(scratch, disk, options.rounds or (1 if options.quick else 5), options.quick, _say)
    report = {"version": 1, "machine": machine(scratch, disk), "rounds": bed.rounds, "rows": []}
    found: list[Row] = []
    try:
        for noun in options.only or NOUNS:
            started = time.monotonic()
            for row in import_module(f"tests.bench.{noun}").rows(bed):
                found.append(row)
                _say(f"{row.noun}: {row.what}: {row.value:.4g} (at most {row.target})")
            _say(f"{noun} took {time.monotonic() - started:.0f} s, load {os.getloadavg()[0]:.1f}")
            report |= {"load_after": os.getloadavg(), "rows": [row.to_json() for row in found]}
            # After each noun: a run takes half an hour, and a failure must not lose the rows so far.
            if options.json and options.json != "-":
                Path(options.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(disk, ignore_errors=True)
    if options.json == "-":
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    show(found)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write the rows as JSON (default: to stdout)")
    parser.add_argument("--only", action="append", choices=NOUNS, metavar="NOUN", help=f"one of: {', '.join(NOUNS)}")
    parser.add_argument("--quick", action="store_true", help="one round, a tenth of the bytes: does the suite itself work?")
    parser.add_argument("--rounds", type=int, help="how often each contender runs (default: 5)")
    parser.add_argument("--scratch", default=_memory(), help="where checkpoints and the server's files lie (%(default)s)")
    parser.add_argument("--disk", default="/var/tmp", help="the same for what is about the disk itself (%(default)s)")
    return parser.parse_args(arguments)


def _memory() -> str:
    """A folder in memory, if there is enough of it: a shared disk would limit every contender alike."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 16 * 2**30
    return str(shared) if roomy else tempfile.gettempdir()


def machine(scratch: Path, disk: Path) -> dict[str, Any]:
    """The machine and the versions that were measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "processors": f"{os.cpu_count()} x {model}",
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
        "scratch": str(scratch.parent),
        "disk": str(disk.parent),
        "load_before": os.getloadavg(),
    }


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


if __name__ == "__main__":
    raise SystemExit(main())
