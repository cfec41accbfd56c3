"""A pseudo-terminal, for tests of programs that read from one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Mapping


class Pty:
    """A pseudo-terminal, whose session runs a command."""

    def __init__(self, *command: str, environment: Mapping[str, str] = os.environ) -> None:
        self._master, slave = pty.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**environment, "PS1": "$ ", "TERM": "dumb"},
        )
        os.close(slave)

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._master, text.encode())

    def expect(self, text: str, seconds: float = 60) -> str:
        """Wait until this is on the screen, after what was expected before; return what stands between the two."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self._master, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def hang_up(self) -> None:
        """Close the terminal: the kernel sends SIGHUP to the session's leader and its foreground."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def close(self) -> None:
        """Hang up and end the command."""
        self.hang_up()
        self.process.kill()
        self.process.wait(20)
