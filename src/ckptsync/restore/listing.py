"""What a listing says of a version."""

from __future__ import annotations

from typing import Any

from ckptsync.checkpoint import Version
from ckptsync.timestamps import iso


def row(version: Version) -> dict[str, Any]:
    """A version, with the keys of `ckptsync list --json`."""
    return {
        "name": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "step": version.step,
        "bytes": version.bytes,
        "files": version.files,
        "saved_at": iso(version.saved_at),
        "state": "COMMITTED",
        "resumable": version.ours.get("resumable"),
        "kind": "model" if version.is_model else "checkpoint",
        "expires_at": iso(version.expires_at) if version.expires_at else None,
        "metrics": metrics(version),
    }


def metrics(version: Version) -> dict[str, float]:
    """What the Trainer had last logged when it saved."""
    return {
        key: value
        for key, value in version.metadata.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("global_step", "epoch")
    }
