"""The file descriptors that this process was started with: those to pass on, and the standard ones that may be closed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

STANDARD = {0: ("stdin", "r"), 1: ("stdout", "w"), 2: ("stderr", "w")}

_inherited: tuple[int, ...] = ()


def claim() -> None:
    """Note which descriptors are inherited, and open /dev/null for a closed stdin, stdout or stderr. To be called first.

    Otherwise the next file that is opened would be the missing one, and get what is printed. A program that is started later
    finds them closed, as it would without this process.
    """
    global _inherited
    for number, (name, mode) in STANDARD.items():
        if not _is_open(number):
            # It gets the lowest free number, which is this one, and Python closes it in what is started.
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - open to the end
    # What Python opens itself is not inheritable.
    _inherited = tuple(each for each in _all() if each not in STANDARD and _is_open(each) and os.get_inheritable(each))


def inherited() -> tuple[int, ...]:
    """The descriptors above stderr that whoever started this process passed to it, for instance those of `<(…)` in a shell."""
    return _inherited


def _all() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208 - names, not paths
    except OSError:
        return []


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
