"""Starts a command as torchrun does: in a session of its own, and again when it fails, with no handler for SIGUSR1."""

from __future__ import annotations

import signal
import subprocess
import sys


def main() -> int:
    """`python launcher.py RESTARTS COMMAND…`"""
    for _ in range(int(sys.argv[1]) + 1):
        worker = subprocess.Popen(sys.argv[2:], start_new_session=True)

        def forward(number: int, _frame: object, worker: subprocess.Popen[bytes] = worker) -> None:
            worker.send_signal(number)
            sys.exit(1)

        signal.signal(signal.SIGTERM, forward)
        if worker.wait() == 0:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
