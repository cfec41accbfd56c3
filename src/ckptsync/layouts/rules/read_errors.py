"""Turns what goes wrong while one file is read into Problems, so that inspecting a folder never fails because of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ckptsync.checkpoint import Problem
from ckptsync.layouts.formats.stream import Malformed


def as_problems(name: str, check: Callable[[], Iterator[Problem]]) -> Iterator[Problem]:
    """Run the check of one file; errors of its content or of the file system become Problems."""
    try:
        yield from check()
    except Malformed as error:
        yield Problem(name, str(error), transient=error.transient)
    except FileNotFoundError:
        yield Problem(name, "vanished while it was read", transient=True)
    except PermissionError:
        yield Problem(name, "cannot be read by this user", transient=False, unreadable=True)
    except OSError as error:
        yield Problem(name, f"cannot be read: {error.strerror or error}", transient=True, unreadable=True)
    except (MemoryError, RecursionError):
        yield Problem(name, "too large or too deeply nested to read", transient=False)
