"""What a service tells the manager that started it: the datagrams of sd_notify(3). Knows nothing of checkpoints.

In the standard library by systemd's own advice: the protocol is stable and small. Without a manager every call does nothing, so
nobody has to ask whether there is one. No call waits and none raises: a manager that is busy or gone must not stop the work.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping

GRACE = 60.0
"""Seconds more that a step which moves asks for. A store that hangs is given up this long after its last sign of life."""

LEAST_PAUSE = 0.5
"""Seconds between two such requests."""

LEAST_BYTES = 2**16
"""So much has to have moved to count: the client goes on writing logs and heartbeats to a store that hangs (wandb 0.31)."""


class Manager:
    """The service manager, behind the socket that it named; or nobody, where that is None.

    `watchdog` is how often it wants a sign of life, in seconds; None where it doesn't.
    """

    def __init__(
        self, address: str | None = None, *, watchdog: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.watchdog = watchdog
        self._clock = clock
        self._address = _address(address) if address else None
        self._status = ""
        self._alive_at = self._extended_at = float("-inf")
        self._moved: int | None = None

    @property
    def beat(self) -> float | None:
        """The longest that the working loop may stay silent, in seconds: half of what the manager waits, as it advises."""
        return self.watchdog / 2 if self.watchdog else None

    def ready(self, status: str) -> None:
        """The service does its work from now on, or does it again after `reloading`."""
        self._status = status
        self._send("READY=1", f"STATUS={_one_line(status)}")
        self.alive()

    def reloading(self) -> None:
        """The settings are being read anew; `ready` follows."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`, sent when it differs from the one before."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={_one_line(text)}")

    def alive(self) -> None:
        """A sign of life, sent when the last one is old enough. Only the loop that does the work may call this."""
        now = self._clock()
        if self.beat is not None and now - self._alive_at >= self.beat / 2:
            self._alive_at = now
            self._send("WATCHDOG=1")

    def unwatched(self) -> None:
        """No working loop is left that could give signs of life, and the service goes on without: expect none any more."""
        if self.watchdog:
            self.watchdog = None
            self._send("WATCHDOG_USEC=0")

    def stopping(self) -> None:
        """The end has begun. From here on the manager's time for a stop runs, which `moving` extends."""
        self._send("STOPPING=1")

    def moving(self, moved: int) -> None:
        """A start or a stop goes on: `moved` bytes by now. Asks for GRACE seconds more each time that enough has moved.

        The first call only sets the mark. A number that fell is of another transfer. The manager's own limit is never shortened
        by an extension (systemd 252, measured).
        """
        if self._moved is None or moved < self._moved:
            self._moved = moved
        elif moved - self._moved >= LEAST_BYTES:
            self._moved = moved
            self._extend()

    def _extend(self) -> None:
        now = self._clock()
        if now - self._extended_at >= LEAST_PAUSE:
            self._extended_at = now
            self._send(f"EXTEND_TIMEOUT_USEC={round(GRACE * 1e6)}")

    def _send(self, *lines: str) -> None:
        if self._address:
            # A socket for each message: one that was kept would outlive a manager that starts anew.
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as opened:
                opened.setblocking(False)
                opened.sendto("\n".join(lines).encode(), self._address)


NOBODY = Manager()
"""For whatever no manager started."""


def claim(environ: MutableMapping[str, str] = os.environ) -> Manager:
    """The manager that started this process, taken out of the environment: a child must not speak in our name."""
    address = environ.pop("NOTIFY_SOCKET", None)
    microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", None)
    ours = pid in (None, str(os.getpid()))
    return Manager(address, watchdog=int(microseconds) / 1e6 if ours and microseconds.isdecimal() else None)


def _address(given: str) -> str | None:
    """Where to send to: a path, or a name in the abstract namespace, which is written with @ for its zero byte."""
    if given[0] == "@":
        return "\0" + given[1:]
    return given if given[0] == "/" else None


def _one_line(text: str) -> str:
    """A newline would begin another assignment of the protocol."""
    return " ".join(text.split())
