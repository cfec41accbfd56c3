"""How uploads go: the settings that hold for one output folder."""

from __future__ import annotations

from dataclasses import dataclass

from ckptsync.store.retrying import FOR_EVER, Patience
from ckptsync.upload.retention import Retention


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """`limit` is in bytes, `stall` in seconds without a sign of progress, `linger` in seconds that an idle child is kept.

    At the end, an unreachable store is retried for `flush_for` seconds without progress, None for as long as it takes.
    `keep` says what stays in the store after each upload. With `only_model` no checkpoint is uploaded, only the final model.
    `mode` is online; offline, where everything is queued for a later start; or disabled, where nothing is pinned either. With
    `yielding` uploads use only the processor and disk time that the training leaves, and `max_rate` is how many bytes a second
    they may send.
    """

    keep_all: bool = False
    limit: int | None = None
    stall: float = 300.0
    patience: Patience = FOR_EVER
    flush_for: float | None = None
    linger: float = 30.0
    keep: Retention = Retention()  # noqa: RUF009 - frozen
    only_model: bool = False
    mode: str = "online"
    yielding: bool = True
    max_rate: int | None = None
