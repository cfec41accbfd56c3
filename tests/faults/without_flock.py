"""Run a command for which flock(2) fails as on NFS without lockd: `python without_flock.py COMMAND…`.

A seccomp filter answers ENOLCK, for the command and all its children: a file system that does so can't be mounted everywhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

FLOCK = {"x86_64": 73, "aarch64": 32}
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
FILTER_MODE = 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ANSWER, ALLOW = 0x00050000, 0x7FFF0000


class Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid_flock() -> None:
    """Make flock(2) fail with ENOLCK in this process, for good. Raises OSError where the kernel has no seccomp."""
    instructions = [
        (LOAD, 0, 0, 0),
        (EQUAL, 0, 1, FLOCK[platform.machine()]),
        (RETURN, 0, 0, ANSWER | errno.ENOLCK),
        (RETURN, 0, 0, ALLOW),
    ]
    code = b"".join(struct.pack("HBBI", *each) for each in instructions)
    library = ctypes.CDLL(None, use_errno=True)
    program = Program(len(instructions), code)
    if library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or library.prctl(PR_SET_SECCOMP, FILTER_MODE, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "no seccomp filter")


if __name__ == "__main__":
    forbid_flock()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - in place of this process
