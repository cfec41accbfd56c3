"""The upload process over its life: started when there is work, rate-limited, replaced after a failure, ended when idle."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptsync import durable, locks
from ckptsync.checkpoint import Run
from ckptsync.errors import ConfigurationError, RejectedError, TransientStoreError
from ckptsync.upload.child import PUBLISH, Child
from ckptsync.upload.settings import UploadSettings

if TYPE_CHECKING:
    from ckptsync.upload.throttle import Throttle

PASSED_STEP = 64 * 2**10
"""Bytes that have to pass the rate limit to count as progress."""


class ChildLifecycle:
    """At most one child at a time, with the client's own files in `private`, or in a temporary folder where that can't be locked.

    Once `urgent` is set, no rate limit and no niceness holds any more, for the current upload too.
    """

    def __init__(
        self,
        run: Run,
        environment: Mapping[str, str],
        private: Path,
        settings: UploadSettings,
        *,
        command: Sequence[str] = PUBLISH,
        proc: Path = Path("/proc"),
    ) -> None:
        self.run = run
        self.settings = settings
        self.urgent = False
        self.stall: Callable[[], float] = lambda: math.inf
        """Seconds without progress that are left to a job at this moment, where that is less than the settings allow."""
        self._environment = environment
        self.private = self._used = self._meant = private
        self._command = command
        self._proc = proc
        self._child: Child | None = None
        self._throttle: Throttle | None = None

    @property
    def running(self) -> bool:
        """Whether the process exists at this moment."""
        return self._child is not None

    def ask(self, job: Mapping[str, Any], *, on_progress: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
        """Have one job done. Raises what the child reports; after a TransientStoreError the next job gets a new process.

        So it does after one that could not start.
        A refused key counts when a new process meets the same refusal: one 401 of a gateway must not end the uploads.
        """
        try:
            return self._ask(job, on_progress)
        except RejectedError:
            self.close()
            return self._ask(job, on_progress)

    def _ask(self, job: Mapping[str, Any], on_progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        child = self.start()
        try:
            return child.ask(job, stall=self._allowed_stall, on_progress=on_progress, passed=self._passed)
        except (TransientStoreError, ConfigurationError):
            # Whatever state the client was left in goes with the old process. One that could not start has ended already.
            child.kill()
            self._child = None
            raise

    def start(self) -> Child:
        """The process, started where there is none. Raises TransientStoreError."""
        late = self._throttle is None and self._limits
        if self._child and (late or self._meant != self.private):
            # The limit was set, or the folder moved, after it had been started.
            self.close()
        if self._child is None:
            durable.remove_tree(self._used)
            self._meant, self._used = self.private, self._lockable()
            environment = {**self._environment, **self._limited()}
            yielding = self.settings.yielding and not self.urgent
            self._child = Child(self.run, environment, self._used, yielding=yielding, command=self._command)
        return self._child

    def close(self) -> None:
        """End the process, gently."""
        if self._child:
            self._child.close()
            self._child = None
            durable.remove_tree(self._used)
        if self._throttle:
            self._throttle.close()
            self._throttle = None

    def kill(self) -> None:
        """End the process at once: the current upload is lost, its snapshot is not."""
        child = self._child
        if child:
            child.kill()

    def _lockable(self) -> Path:
        """The folder for the client's files, elsewhere if it can't be locked: the client gives up without flock (wandb 0.31)."""
        if locks.available(self.private.parent):
            return self.private
        return Path(tempfile.mkdtemp(prefix="ckptsync-"))

    def _allowed_stall(self) -> float:
        """Seconds without progress that end a job; infinite where nothing shows progress (no /proc, no limit to pass)."""
        visible = self._throttle is not None or (self._proc / "self/io").exists()
        return min(self.settings.stall, self.stall()) if visible else math.inf

    @property
    def _limits(self) -> bool:
        return bool(self.settings.max_rate) and not self.urgent

    def _limited(self) -> dict[str, str]:
        """What the child's environment needs to stay within the rate."""
        if self._throttle is None and self._limits:
            from ckptsync.upload.throttle import Throttle

            try:
                self._throttle = Throttle(self._max_rate, self._environment).start()
            except OSError as error:
                raise TransientStoreError(f"the limit on uploads cannot be set up: {error}") from error
        return self._throttle.environment() if self._throttle else {}

    def _max_rate(self) -> float | None:
        return None if self.urgent else self.settings.max_rate

    def _passed(self) -> int:
        """What the limit let through, in steps that are larger than the client's heartbeats."""
        return self._throttle.passed // PASSED_STEP if self._throttle else 0
