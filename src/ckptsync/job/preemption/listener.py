"""Polls providers for preemption notices, each in its own thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from ckptsync.job.preemption.notice import Notice, Source

log = logging.getLogger(__name__)

PROBES = (0.0, 5.0, 15.0, 40.0)
"""Seconds before each probe for a service: on a new machine the network may come up late. After the last one the thread ends."""


class NoticeListener:
    """Polls each source in a daemon thread and reports each notice once, by calling `on_notice` from that thread."""

    def __init__(
        self, sources: Sequence[Source], on_notice: Callable[[Notice], None], *, probes: Sequence[float] = PROBES
    ) -> None:
        self.found: list[str] = []
        """The names of the providers that this machine has."""
        self._sources = sources
        self._on_notice = on_notice
        self._probes = probes
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the threads."""
        for source in self._sources:
            threading.Thread(target=self._listen, args=(source,), name=f"notices-{source.name}", daemon=True).start()

    def stop(self) -> None:
        """Report no more notices. The threads end when their pending request does, or with the process."""
        self._stop.set()

    def _listen(self, source: Source) -> None:
        if not any(self._probe(source, delay) for delay in self._probes):
            log.debug("no metadata service of %s on this machine", source.name)
            return
        self.found.append(source.name)
        log.info("listening for preemption notices of %s", source.name)
        failing = False
        while not self._stop.is_set():
            try:
                notice = source.poll()
                failing = False
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                # Whatever the provider's documents don't promise: poll again, and log it once.
                log.log(logging.DEBUG if failing else logging.INFO, "metadata service of %s: %s", source.name, error)
                notice, failing = None, True
            if notice and not self._stop.is_set():
                self._on_notice(notice)
                if notice.final:
                    return
            self._stop.wait(source.interval)

    def _probe(self, source: Source, delay: float) -> bool:
        if self._stop.wait(delay):
            return False
        try:
            return source.present()
        except (OSError, ValueError):
            return False
