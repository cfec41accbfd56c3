"""The upload process as it is, but dying at its n-th file event: `python -m tests.crash.publishing FOLDER N`, N 0 to only count.

Counts go to FOLDER.events, a byte for each, since the process may be killed at any of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ckptsync import publish
from tests.crash.deaths import Counter


def main() -> int:
    """Upload, mortally."""
    folder, n = Path(sys.argv[1]), int(sys.argv[2])
    Counter(folder, die_at=n or None, tally=folder.with_name(f"{folder.name}.events"))
    return publish.main()


if __name__ == "__main__":
    raise SystemExit(main())
