"""The files of a committed version: downloads them into a folder, or reads them only to verify them."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptsync.checkpoint import Problem, Version
from ckptsync.errors import CkptsyncError, IntegrityError, NotFoundError, TransientStoreError
from ckptsync.store import ranges
from ckptsync.store.contract import Progress
from ckptsync.store.manifest import READERS, Entry, Urls, counted, entries_of, remove_others, written

if TYPE_CHECKING:
    import requests

NO_ROOM_HINT = "Free some space or give another folder; complete files are kept for the next try."

DOWNLOADS = 2
"""How often a file is downloaded before a wrong digest is an error: once may be the network, twice is the store."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class VersionFiles:
    """A version's manifest and the URLs of its files.

    `translated` turns the client's errors into ckptsync's, given what was tried. The constructor queries the store, so it has to
    run in such a block too.
    """

    def __init__(self, artifact: Any, version: Version, translated: Callable[[str], AbstractContextManager[None]]) -> None:
        self._version = version
        self._translated = translated
        self._entries = entries_of(artifact, version)
        self._urls = Urls(artifact)

    def fetch(self, into: Path, *, progress: Progress) -> None:
        """See Store.fetch: files that match already are kept, others are deleted."""
        for entry in self._entries.values():
            entry.require_no_links(into)
        remove_others(into, {*self._entries, *(ranges.sidecar(Path(path)).as_posix() for path in self._entries)})
        arrived = counted(self._entries.values(), progress)
        with (
            _session() as session,
            ThreadPoolExecutor(READERS) as pool,
            ThreadPoolExecutor(READERS) as files,
            _interruptible(arrived, pool, files) as arriving,
        ):
            outcomes = [files.submit(self._download, session, pool, entry, into, arriving) for entry in self._entries.values()]
            for outcome in outcomes:
                outcome.result()

    def prove(self, proved: set[str], *, progress: Progress) -> list[Problem]:
        """See Store.prove: reads every file that isn't verified yet, and keeps none."""
        arrived = counted(self._entries.values(), progress)
        with (
            _session() as session,
            ThreadPoolExecutor(READERS) as files,
            _interruptible(arrived, files) as arriving,
        ):
            outcomes = [files.submit(self._read, session, entry, proved, arriving) for entry in self._entries.values()]
            return [problem for outcome in outcomes if (problem := outcome.result())]

    def _download(
        self,
        session: requests.Session,
        pool: ThreadPoolExecutor,
        entry: Entry,
        into: Path,
        arrived: Callable[[int], None],
    ) -> None:
        note = ranges.Finished.of(into / entry.path, entry.size, entry.digest)
        # An interrupted one has its full size already: reading it would be wasted.
        if not note.path.exists() and entry.proved(into):
            arrived(entry.size)
            return
        what = f"the download of {entry.path}"
        for _ in range(DOWNLOADS):
            digest = entry.hasher()
            with self._translated(what), _local(what):
                ranges.download(
                    session,
                    lambda: self._urls.of(entry.path),
                    into / entry.path,
                    entry.size,
                    pool=pool,
                    arrived=arrived,
                    seen=digest.update,
                    finished=note,
                )
            note.forget()
            if written(digest) == entry.digest:
                return
        raise IntegrityError(
            f"{self._version.name}:{self._version.version}: {entry.path} does not have the digest of its manifest"
        )

    def _read(self, session: requests.Session, entry: Entry, proved: set[str], arrived: Callable[[int], None]) -> Problem | None:
        if entry.path in proved:
            arrived(entry.size)
            return None
        try:
            with self._translated(f"reading {entry.path}"):
                found = entry.digest_of(ranges.read(session, self._urls.of(entry.path), entry.size, arrived=arrived))
        except (NotFoundError, IntegrityError) as error:
            return Problem(entry.path, str(error))
        if found != entry.digest:
            return Problem(entry.path, "does not have the digest of its manifest")
        proved.add(entry.path)
        return None


@contextmanager
def _session() -> Iterator[requests.Session]:
    """A session with enough connections for all files and ranges at once."""
    import requests

    with requests.Session() as session:
        session.mount("http", requests.adapters.HTTPAdapter(pool_maxsize=READERS * 2))
        yield session


@contextmanager
def _interruptible(arrived: Callable[[int], None], *pools: ThreadPoolExecutor) -> Iterator[Callable[[int], None]]:
    """As `arrived`, for the threads of the pools; when the block is interrupted, they end with their next piece.

    Leaving a pool waits for what runs in it: a Ctrl-C would otherwise be obeyed when everything has arrived.
    """
    interrupted = threading.Event()

    def arriving(count: int) -> None:
        if interrupted.is_set():
            raise TransientStoreError("interrupted")
        arrived(count)

    try:
        yield arriving
    except Exception:
        raise
    except BaseException:
        interrupted.set()
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        raise


@contextmanager
def _local(what: str) -> Iterator[None]:
    """Tell a full or read-only local disk from a failing store: a retry would not help."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise IntegrityError(f"{what} failed: this file system takes no name that long") from error
        if error.errno not in _NO_ROOM:
            raise
        raise CkptsyncError(f"{what} failed: {error.strerror}", hint=NO_ROOM_HINT) from error
