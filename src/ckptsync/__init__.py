"""Uploads every complete Hugging Face Trainer checkpoint as a verified W&B artifact version, and resumes trainings from them.

Out: the Trainer finishes a checkpoint → a snapshot, linked into the spool, where rotation can't delete it → a version of the
artifact `checkpoint-<run_id>` → a receipt, which proves that the snapshot is durable (`upload`). Back: the newest valid
checkpoint, local or downloaded, is placed in the output folder (`restore`), and the training is started from it (`job`). What
happens inside the training is in `trainer`. `run` and `resume` do both ways; `watch` and `push` only the first.

Ways in: `cli`, and for Python programs `api` and `background`. `publish` runs in the child process that uploads and prunes.

The state of an output folder: `state_folder` says where it is, and `state_moves` moves it. `record` reads and writes run.json:
the folder's run, the command that starts the training, and every start (attempt) so far.

Below everything: `checkpoint` (the frozen values that packages exchange), `errors` (with exit codes), `config` and
`connections` (settings, credentials, and which server they lead to), `durable` (writes that survive a crash), `regular_file`
(opens regular files only), `descriptors` (file descriptors to pass on), `locks` (between processes of one machine; between
machines that is `job.heartbeat`), `processes` (/proc), `signals` (a thread that receives them), `secret_detection` (finds
secrets in command lines), `sizes`, `timestamps`.
"""

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
