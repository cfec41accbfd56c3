"""Soak test of everything together: `python -m tests.soak --minutes N [--seed S]`.

Prints its figures; exits with 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.soak.jobs import JobSoak
from tests.soak.soak import Soak


def main() -> int:
    """Run the soak, account for every checkpoint, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (%(default)s)")
    parser.add_argument("--seed", type=int, help="make the same decisions again")
    parser.add_argument("--jobs", action="store_true", help="of `ckptsync run` instead of `ckptsync watch`")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="do it in this new folder and leave everything there")
    arguments = parser.parse_args()
    seed = random.randrange(2**31) if arguments.seed is None else arguments.seed
    sys.stdout.write(f"seed {seed}, {arguments.minutes:g} minutes\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="ckptsync-soak-", ignore_cleanup_errors=True) as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = (JobSoak if arguments.jobs else Soak)(folder, seed, calm=0.0 if arguments.jobs else 0.4).run(
            arguments.minutes * 60
        )
    width = max(map(len, found.figures))
    for name, value in found.figures.items():
        sys.stdout.write(f"{name:<{width}}  {value}\n")
    for each in found.wrong:
        sys.stdout.write(f"WRONG: {each}\n")
    return 1 if found.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
