"""The processes that load data for a rank, where a signal to the whole process group reaches them too.

torch's DataLoader ends a worker at SIGTERM and then raises in the training that the worker was killed (torch 2.13): the
checkpoint that the signal asked for would never be saved. systemd, SLURM and torchrun all signal the whole group.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any


def shield() -> None:
    """Make the workers that DataLoaders fork from now on obey a SIGTERM from their parent alone.

    They end with their parent all the same: torch looks every 5 s whether it is still there. Workers that are spawned, the
    default of macOS, don't inherit this, and where the system has no `sigwaitinfo` nothing is changed.
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
    """End this process at the first SIGTERM whose sender is the parent. A blocked signal waits here and tells who sent it."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
