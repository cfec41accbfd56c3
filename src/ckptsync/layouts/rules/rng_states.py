"""Every rank left its RNG state: `rng_state.pth` for a single process, `rng_state_R.pth` for each of several."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ckptsync.checkpoint import Problem
from ckptsync.layouts import file_names


def ranks(files: Collection[str]) -> set[int] | None:
    """The ranks with an RNG state; an empty set for a single process, whose file has no number; None if there is no file."""
    found = [match[1] for name in files if (match := file_names.RNG.fullmatch(name))]
    return {int(number) for number in found if number is not None} if found else None


def count(files: Collection[str]) -> int | None:
    """The number of processes with an RNG state; None if there is none."""
    found = ranks(files)
    return None if found is None else max(1, len(found))


def check(files: Collection[str], world_size: int | None) -> Iterator[Problem]:
    """No rank is missing, by the numbers in the names and by the world size, if known."""
    found = ranks(files)
    if found is None:
        return
    expected = world_size or (max(found) + 1 if found else 1)
    if found and "rng_state.pth" in files:
        yield Problem("rng_state.pth", "written by a single process, the others by several: two different saves", transient=True)
    if not found and expected > 1:
        yield Problem("rng_state_0.pth", f"missing: {expected} processes train, only one saved its RNG state", transient=True)
    elif found == {0} and expected == 1:
        yield Problem(
            "rng_state_1.pth", "missing: a single process would have written rng_state.pth, not rng_state_0.pth", transient=True
        )
    elif found:
        yield from _gaps(found, expected)


def _gaps(found: set[int], expected: int) -> Iterator[Problem]:
    for rank in range(min(expected, len(found) + 1)):
        if rank not in found:
            yield Problem(f"rng_state_{rank}.pth", f"missing: {len(found)} of {expected} ranks present", transient=True)
            return
    if expected < len(found):
        reason = f"not a rank of {expected} processes: left by an earlier save"
        yield Problem(f"rng_state_{max(found)}.pth", reason, transient=True)
