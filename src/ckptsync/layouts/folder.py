"""One listing of a checkpoint folder, and bounded reads of its files. Never follows a symlink or opens a pipe."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath

from ckptsync.checkpoint import File, Problem, is_storable
from ckptsync.layouts.formats.stream import Malformed, read_exactly


@dataclass(frozen=True, slots=True)
class Folder:
    """One listing of a checkpoint folder: `files` by relative POSIX path, `problems` for entries that are not regular files.

    `mtime_ns` is the folder's own modification time, taken before the listing. `left_out` are files whose names are not UTF-8,
    printably: no store can keep such a name, and no Trainer writes one.
    """

    path: Path
    files: dict[str, File]
    problems: tuple[Problem, ...]
    mtime_ns: int
    left_out: tuple[str, ...] = ()

    def under(self, folder: str) -> dict[str, File]:
        """The files below a subfolder, by their path relative to it. `.` is the checkpoint itself."""
        if folder == ".":
            return self.files
        prefix = folder + "/"
        return {name.removeprefix(prefix): file for name, file in self.files.items() if name.startswith(prefix)}

    @contextmanager
    def open(self, name: str) -> Iterator[FileIO]:
        """Open a file for reading. Raises OSError, or Malformed if it is no longer a regular file."""
        # A symlink put there since the listing would lead outside, a pipe would block.
        descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with FileIO(descriptor) as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Malformed("is no longer a regular file", transient=False)
            yield stream

    def read(self, name: str, *, limit: int) -> bytes:
        """The content. Raises Malformed if it is longer than `limit` bytes, and never reads more than that."""
        with self.open(name) as stream:
            content = read_exactly(stream, min(os.fstat(stream.fileno()).st_size, limit + 1))
        if len(content) > limit:
            raise Malformed(f"longer than {limit} bytes, the limit for such a file", transient=False)
        return content


def list_folder(path: Path) -> Folder:
    """List a checkpoint folder once. Raises OSError if the folder itself is missing, unreadable or a symlink."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{path} is {'a symlink, ' if path.is_symlink() else ''}not a folder")
    files: list[File] = []
    problems: list[Problem] = []
    left_out: list[str] = []
    for name, entry in _walk(path):
        if isinstance(entry, OSError):
            problems.append(Problem(name, f"cannot be listed: {entry.strerror}", transient=True, unreadable=True))
        elif not is_storable(name):
            left_out.append(ascii(name))
        elif stat.S_ISREG(entry.st_mode):
            files.append(File(name, entry.st_size, entry.st_mtime_ns))
        else:
            kind = "a symlink" if stat.S_ISLNK(entry.st_mode) else "neither a file nor a folder"
            problems.append(Problem(name, f"is {kind}: a checkpoint may hold only regular files", transient=False))
    return Folder(path, {file.path: file for file in sorted(files)}, tuple(problems), status.st_mtime_ns, tuple(left_out))


def list_files(path: Path) -> tuple[File, ...]:
    """Every regular file below a checkpoint folder, sorted by its relative POSIX path; the input of `fingerprint`.

    Leaves out everything that is not a regular file, names that are not UTF-8, and files that vanish during the listing; follows
    no symlink. Raises
    OSError if the folder itself cannot be listed.
    """
    return tuple(list_folder(path).files.values())


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result | OSError]]:
    """Everything below `root` that is not a folder. For a subfolder that cannot be listed it yields the error."""
    pending = ["."]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(root / folder) as entries:
                found = [(str(PurePosixPath(folder, entry.name)), entry) for entry in entries]
        except OSError as error:
            if folder == ".":
                raise
            yield folder, error
            continue
        for name, entry in found:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(status.st_mode):
                pending.append(name)
            else:
                yield name, status
