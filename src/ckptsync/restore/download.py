"""Download one version, verified, into a folder of the user's choice. Starts nothing and changes no output_dir."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptsync import durable
from ckptsync.checkpoint import Run, Version
from ckptsync.errors import IntegrityError, NotFoundError, UsageError
from ckptsync.restore import sources, verification
from ckptsync.restore.fetch import fetch
from ckptsync.store.contract import Progress, Store
from ckptsync.store.retrying import INTERACTIVE, Patience

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pulled:
    """A version on disk. `step` is None where it is unknown."""

    path: Path
    version: Version
    step: int | None


def select(versions: Sequence[Version], run: Run, alias: str | None, *, model: bool = False) -> list[Version]:
    """The versions to try, best first: the one with the alias, else all from the newest on.

    `model` asks for the final model, else it is a checkpoint. Raises NotFoundError, naming what there is.
    """
    wanted = [each for each in versions if each.is_model == model]
    if alias and alias != "latest":
        return [sources.pick(wanted, alias, run)]
    if model:
        found = sorted(wanted, key=lambda each: (each.saved_at, each.number), reverse=True)
    else:
        found = [source.version for source in sources.order([], wanted) if source.version]
        # Versions that aren't resumable can still be loaded.
        found += [each for each in sorted(wanted, key=lambda each: each.saved_at, reverse=True) if each not in found]
    if not found:
        what = "final model" if model else "checkpoint"
        hint = "It is uploaded when the training reaches its last step." if model else "`ckptsync watch` uploads them."
        raise NotFoundError(f"run {run} has no {what} in the store", hint=hint)
    return found


def pull(
    store: Store, versions: Sequence[Version], destination: Path, *, progress: Progress, patience: Patience = INTERACTIVE
) -> Pulled:
    """Download the first valid version into a folder that is new or empty.

    The folder appears in one step. An interrupted pull leaves `.NAME.partial` beside it, and the next one continues from there.
    Raises IntegrityError when no version is valid, UsageError when the folder isn't empty.
    """
    target = require_free(destination)
    failed: list[str] = []
    for version in versions:
        try:
            return _download(store, version, target, progress, patience)
        except (IntegrityError, NotFoundError) as error:
            if len(versions) == 1:
                raise
            log.error("skipping %s: %s", version, error)
            failed.append(str(version))
    raise IntegrityError(f"no version is valid: tried {', '.join(failed)}")


def require_free(destination: Path) -> Path:
    """The folder to fill, as an absolute path. Raises UsageError when it isn't empty."""
    target = destination.expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{destination} is not an empty folder", hint="Give a folder that is new or empty.")
    return target


def _download(store: Store, version: Version, target: Path, progress: Progress, patience: Patience) -> Pulled:
    partial = target.with_name(f".{target.name}.partial")
    durable.make_folder(target.parent)
    verification.require_space(version, partial)
    partial.mkdir(exist_ok=True)
    fetch(store, version, partial, progress=progress, patience=patience)
    step = version.step
    if not version.is_model and version.ours.get("resumable") is not False and (partial / "trainer_state.json").exists():
        try:
            step = verification.check_download(partial, version).global_step
        except IntegrityError:
            durable.remove_tree(partial)
            raise
    durable.rename(partial, target)
    return Pulled(target, version, step)
