"""The process that uploads, as seen by whoever gives it jobs: started, asked, watched for progress, ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ckptsync import errors
from ckptsync.checkpoint import Run
from ckptsync.errors import CkptsyncError, ConfigurationError, TransientStoreError

FAILED = 1
"""The exit status of a Python program that ends by an exception."""

LOOK = 1.0
"""Seconds between two looks at how long a job may stand still."""

CLOSING_SECONDS = 20.0
"""How long the child may take to say good-bye to the server once its queue is empty."""

PUBLISH = (sys.executable, "-P", "-m", "ckptsync.publish")
"""The program that uploads; it speaks the JSON lines that publish describes. Without -P, Python would put the current folder
first on its path: a project's own secrets.py or types.py would run in the process that holds the key."""


class Child:
    """The process that uploads. It lives while there is work, and for a little after, since its start costs a second."""

    def __init__(
        self,
        run: Run,
        environment: Mapping[str, str],
        private: Path,
        *,
        yielding: bool = True,
        command: Sequence[str] = PUBLISH,
    ) -> None:
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(environment),
                text=True,
                # Its own session: a Ctrl-C or a signal to our group is for us to handle, while the current upload goes on.
                start_new_session=True,
            )
        except OSError as error:
            raise TransientStoreError(f"the upload process cannot be started: {error}") from error
        self._answered = False
        self._last_words = ""
        threading.Thread(target=self._read, daemon=True).start()
        self._stderr = threading.Thread(target=self._pass_stderr, daemon=True)
        self._stderr.start()
        self._send({"run": asdict(run), "private": str(private), "yielding": yielding, "parent": os.getpid()})

    def ask(
        self,
        job: Mapping[str, Any],
        *,
        stall: Callable[[], float],
        on_progress: Callable[[dict[str, Any]], None],
        passed: Callable[[], int] = lambda: 0,
    ) -> dict[str, Any]:
        """Have one job done. Raises what the child reports, and TransientStoreError when it died or stopped moving.

        `stall` gives the seconds without progress that it is allowed, which may change meanwhile. `passed` grows by what shows
        elsewhere that it moves.
        """
        self._send(job)
        since, furthest = time.monotonic(), -1
        while True:
            limit = stall()
            left = since + limit - time.monotonic()
            try:
                if left <= 0:
                    raise queue.Empty
                answer = self._answers.get(timeout=min(left, LOOK))
            except queue.Empty:
                if time.monotonic() < since + limit:
                    continue
                self.kill()
                raise TransientStoreError(f"the upload made no progress for {limit:g} s and was ended") from None
            if answer is None:
                raise self._death()
            self._answered = self._answered or answer["event"] != "progress"
            if answer["event"] == "done":
                return answer
            if answer["event"] == "failed":
                raise _reported(answer)
            on_progress(answer)
            if (moved := answer["moved"] + passed()) > furthest:
                since, furthest = time.monotonic(), moved

    def close(self) -> None:
        """Let it finish its run on the server, and end it when that takes too long."""
        try:
            if self._process.stdin:
                self._process.stdin.close()
            self._process.wait(CLOSING_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            self.kill()

    def kill(self) -> None:
        """End it now. wandb-core ends with its parent (wandb 0.31, measured)."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._close_stdin()

    def _send(self, value: Mapping[str, Any]) -> None:
        try:
            assert self._process.stdin is not None  # noqa: S101 - it is a pipe
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise self._death() from error

    def _close_stdin(self) -> None:
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _death(self) -> CkptsyncError:
        """What the end of the process means: one that gave no answer and failed by itself will fail again."""
        try:
            status = self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            return TransientStoreError("the upload process no longer listens")
        self._stderr.join(CLOSING_SECONDS)
        self._close_stdin()
        if status != FAILED or self._answered:
            return TransientStoreError(f"the upload process ended with status {status}")
        return ConfigurationError(
            f"the upload process cannot start: {self._last_words or 'it says nothing'}",
            hint="Check the Python environment that ckptsync is installed in: `ckptsync doctor`.",
        )

    def _pass_stderr(self) -> None:
        """Hand on what the process says, and keep the last line of it."""
        assert self._process.stderr is not None  # noqa: S101 - it is a pipe
        with self._process.stderr as lines:
            for line in lines:
                self._last_words = line.strip() or self._last_words
                sys.stderr.write(line)

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        try:
            with self._process.stdout as lines:
                for line in lines:
                    self._answers.put(json.loads(line))
        except ValueError:
            # Half a line: it was killed while it wrote.
            self.kill()
        self._answers.put(None)


def _reported(answer: Mapping[str, Any]) -> CkptsyncError:
    """The child's error, as the class that it was there."""
    kind = getattr(errors, str(answer["error"]), CkptsyncError)
    error: CkptsyncError = kind(str(answer["message"]), hint=answer.get("hint"))
    if isinstance(error, TransientStoreError):
        error.retry_after = float(answer.get("retry_after") or 0.0)
    return error
