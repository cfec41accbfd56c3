"""Reads a version's bytes or manifest, with retries. Tells a version that cannot be read from a store that cannot be reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ckptsync.checkpoint import Problem, Version
from ckptsync.errors import IntegrityError, TransientStoreError
from ckptsync.store.contract import Progress, Store
from ckptsync.store.retrying import Patience, retry

Result = TypeVar("Result")


def fetch(store: Store, version: Version, into: Path, *, progress: Progress, patience: Patience) -> None:
    """Download and verify every file of a version, as Store.fetch does.

    Raises IntegrityError where it cannot be read although the store answers: an older version may do. Raises TransientStoreError
    where the store doesn't answer.
    """
    furthest = 0

    def moved(done: int, total: int) -> None:
        nonlocal furthest
        furthest = max(furthest, done)
        progress(done, total)

    what = f"the download of {version}"
    _read(
        store,
        version,
        lambda: retry(lambda: store.fetch(version, into, progress=moved), what=what, patience=patience, reached=lambda: furthest),
    )


def prove(store: Store, version: Version, *, progress: Progress, patience: Patience) -> list[Problem]:
    """Read every byte of a version, as Store.prove does. Raises as `fetch`."""
    proved: set[str] = set()
    what = f"reading {version}"
    return _read(
        store, version, lambda: retry(lambda: store.prove(version, proved, progress=progress), what=what, patience=patience)
    )


def compare(store: Store, version: Version, folder: Path, *, progress: Progress, patience: Patience) -> list[str]:
    """Read every byte of a local folder, as Store.differing does."""
    what = f"comparing {folder.name} with {version}"
    return retry(lambda: store.differing(version, folder, progress=progress), what=what, patience=patience)


def _read(store: Store, version: Version, unit: Callable[[], Result]) -> Result:
    try:
        return unit()
    except TransientStoreError as error:
        # Raises the same where it is the store that fails.
        store.versions(version.name)
        raise IntegrityError(f"{version} cannot be read, although the store answers: {error}") from error
