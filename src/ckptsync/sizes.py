"""Sizes as people write them."""

from __future__ import annotations


def size_of(count: float) -> str:
    """Bytes in the largest decimal unit that leaves a number of at least 1, with three digits: 418 B, 1.47 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
