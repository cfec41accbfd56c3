"""Shields DataLoader workers from a SIGTERM to the whole process group, which systemd, SLURM and torchrun send.

A DataLoader worker ends at SIGTERM, and torch then raises in the training that it was killed (torch 2.13): the checkpoint that
the signal asked for would never be saved.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any


def shield() -> None:
    """Make the workers that DataLoaders fork from now on obey SIGTERM only from their parent.

    They still end with their parent: torch checks every 5 s that it is alive. Spawned workers, the default on macOS, don't
    inherit this, and on a system without `sigwaitinfo` nothing changes.
    """
    from torch.utils.data._utils import signal_handling

    original = signal_handling._set_worker_signal_handlers
    if getattr(original, "_ckptsync", False) or not hasattr(signal, "sigwaitinfo"):
        return

    def set_worker_signal_handlers(*args: Any) -> None:
        original(*args)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()

    set_worker_signal_handlers._ckptsync = True  # type: ignore[attr-defined]
    signal_handling._set_worker_signal_handlers = set_worker_signal_handlers


def _obey_parent(parent: int) -> None:
    """Exit at the first SIGTERM that the parent sent: `sigwaitinfo` returns a blocked signal with its sender."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
