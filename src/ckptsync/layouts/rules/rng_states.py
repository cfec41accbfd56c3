"""The random generators of every process: `rng_state.pth` of one, `rng_state_R.pth` of each of several."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ckptsync.checkpoint import Problem
from ckptsync.layouts import file_names


def ranks(files: Collection[str]) -> set[int] | None:
    """The ranks that left a generator: numbers, an empty set for the one process that has no number, or None."""
    found = [match[1] for name in files if (match := file_names.RNG.fullmatch(name))]
    return {int(number) for number in found if number is not None} if found else None


def count(files: Collection[str]) -> int | None:
    """How many processes left a generator, or None when none did."""
    found = ranks(files)
    return None if found is None else max(1, len(found))


def check(files: Collection[str], world_size: int | None) -> Iterator[Problem]:
    """Which ranks are missing, by the numbers themselves and by the world size where it is known."""
    found = ranks(files)
    if found is None:
        return
    expected = world_size or (max(found) + 1 if found else 1)
    if found and "rng_state.pth" in files:
        yield Problem("rng_state.pth", "one process and several wrote here: two different saves", transient=True)
    if not found and expected > 1:
        yield Problem("rng_state_0.pth", f"missing: {expected} processes train, one left its generator", transient=True)
    elif found == {0} and expected == 1:
        yield Problem("rng_state_1.pth", "missing: rng_state_0.pth is the name when several processes train", transient=True)
    elif found:
        yield from _gaps(found, expected)


def _gaps(found: set[int], expected: int) -> Iterator[Problem]:
    for rank in range(min(expected, len(found) + 1)):
        if rank not in found:
            yield Problem(f"rng_state_{rank}.pth", f"missing: {len(found)} of {expected} ranks are there", transient=True)
            return
    if expected < len(found):
        reason = f"rank of a world of {expected}: left by an earlier save"
        yield Problem(f"rng_state_{max(found)}.pth", reason, transient=True)
