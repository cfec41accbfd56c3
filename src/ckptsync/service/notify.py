"""Status messages to the service manager that started this process, as sd_notify(3) sends them. Knows nothing of checkpoints.

Uses the standard library alone, as systemd advises: the protocol is small and stable. Without a manager every call does nothing,
so callers need not check for one. No call blocks or raises: a manager that is busy or gone must not stop the work.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping

GRACE = 60.0
"""Seconds by which progress extends the manager's timeout. So a hung store is given up this long after its last byte."""

LEAST_PAUSE = 0.5
"""Seconds between two such extensions."""

LEAST_BYTES = 2**16
"""Bytes that count as progress. Fewer don't: the client keeps sending logs and heartbeats to a hung store (wandb 0.31)."""


class Manager:
    """The service manager, by its notification socket; without an address, every call does nothing.

    `watchdog` is the manager's watchdog timeout in seconds; None if it has none.
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
        """The longest that the working loop may stay silent, in seconds: half of the watchdog timeout, as systemd advises."""
        return self.watchdog / 2 if self.watchdog else None

    def ready(self, status: str) -> None:
        """The service is up, or has finished `reloading`."""
        self._status = status
        self._send("READY=1", f"STATUS={_one_line(status)}")
        self.alive()

    def reloading(self) -> None:
        """The settings are being reloaded; `ready` follows."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows. Sent only if it changed."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={_one_line(text)}")

    def alive(self) -> None:
        """Reset the watchdog, if the last reset is old enough. Only the loop that does the work may call this."""
        now = self._clock()
        if self.beat is not None and now - self._alive_at >= self.beat / 2:
            self._alive_at = now
            self._send("WATCHDOG=1")

    def unwatched(self) -> None:
        """Turn the watchdog off: the service continues without a loop that could reset it."""
        if self.watchdog:
            self.watchdog = None
            self._send("WATCHDOG_USEC=0")

    def stopping(self) -> None:
        """The service is stopping. The manager's stop timeout runs from now on, and `moving` extends it."""
        self._send("STOPPING=1")

    def moving(self, moved: int) -> None:
        """Report `moved` bytes of a start or a stop in progress. Extends the timeout by GRACE each time enough bytes moved.

        The first call only sets the base. A smaller number than before belongs to another transfer. An extension never shortens
        the manager's own timeout (systemd 252, measured).
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
            # A new socket for each message: a kept one would outlive a manager that restarts.
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as opened:
                opened.setblocking(False)
                opened.sendto("\n".join(lines).encode(), self._address)


NOBODY = Manager()
"""For a process that no manager started."""


def claim(environ: MutableMapping[str, str] = os.environ) -> Manager:
    """The manager that started this process. Removes it from the environment, so that no child reports in our name."""
    address = environ.pop("NOTIFY_SOCKET", None)
    microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", None)
    ours = pid in (None, str(os.getpid()))
    return Manager(address, watchdog=int(microseconds) / 1e6 if ours and microseconds.isdecimal() else None)


def _address(given: str) -> str | None:
    """The socket's address: a path, or a name in the abstract namespace, written with @ for its zero byte."""
    if given[0] == "@":
        return "\0" + given[1:]
    return given if given[0] == "/" else None


def _one_line(text: str) -> str:
    """A newline would start another assignment of the protocol."""
    return " ".join(text.split())
