"""Uploads every complete Hugging Face Trainer checkpoint as a verified W&B artifact version, and resumes trainings from them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptsync.api import pull as pull
    from ckptsync.api import resumed_run as resumed_run
    from ckptsync.api import status as status
    from ckptsync.api import verify as verify
    from ckptsync.api import versions as versions
    from ckptsync.background import Watching as Watching
    from ckptsync.background import watch_in_background as watch_in_background
    from ckptsync.trainer.callback import SyncCallback as SyncCallback
    from ckptsync.trainer.prediction_table import PredictionTableCallback as PredictionTableCallback

__version__ = "0.1.0"

_HOMES = {
    "PredictionTableCallback": "ckptsync.trainer.prediction_table",
    "SyncCallback": "ckptsync.trainer.callback",
    "Watching": "ckptsync.background",
    "pull": "ckptsync.api",
    "resumed_run": "ckptsync.api",
    "status": "ckptsync.api",
    "verify": "ckptsync.api",
    "versions": "ckptsync.api",
    "watch_in_background": "ckptsync.background",
}
"""Public name → its module, imported on first use: the watcher and the hook import this package and must stay light."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ckptsync' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
