"""Whether the user of a unit can reach the files that it needs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from ckptsync.errors import CkptsyncError, UsageError
from ckptsync.service.units.content import Owner


def require_reachable(paths: Sequence[Path], owner: Owner) -> None:
    """Raise UsageError for the first path that the owner can't reach, naming the folder that blocks it.

    Units run without privileges, so even root can't enter another user's home of mode 0700.
    """
    for path in paths:
        obstacle = next(_obstacles(path, owner), None)
        if obstacle:
            raise UsageError(
                f"{owner.name} cannot reach {path}: {obstacle} has mode {stat.S_IMODE(obstacle.stat().st_mode):04o}",
                hint="Install ckptsync where that user can reach it, below /opt for instance, and run install-units from there.",
            )


def _obstacles(path: Path, owner: Owner) -> Iterator[Path]:
    """The folders and files on the way to a path that the owner may not read or enter."""
    for step in _path_components(path):
        status = step.stat()
        bits = 0o1 if step.is_dir() else 0o4
        shift = 6 if status.st_uid == owner.uid else 3 if status.st_gid in owner.gids else 0
        if not (status.st_mode >> shift) & bits:
            yield step


def _path_components(path: Path) -> Iterator[Path]:
    """Every folder on the way to a file, through each symbolic link, and the file."""
    for _ in range(40):
        yield from reversed(path.parents)
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    real = Path(os.path.realpath(path))
    if not real.exists():
        raise CkptsyncError(f"{path} does not exist", hint="Check the installation of ckptsync.")
    yield from reversed(real.parents)
    yield real
