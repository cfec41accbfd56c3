"""What an error of the wandb client means: retry, a refused key, a missing object, or give up.

Doesn't import the client: the names of its classes are enough.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping

from ckptsync.errors import CkptsyncError, NotFoundError, PermanentStoreError, RejectedError, TransientStoreError

_DENIED = re.compile(r"(?i)\b(401|unauthorized|unauthenticated|invalid api key|user is not logged in)\b")
_FINAL = re.compile(
    r"(?i)quota|storage limit|limit exceeded|permission|forbidden|\b403\b.*graphql|not allowed|already exists with type"
    r"|type mismatch|expected type|invalid artifact|read[- ]only"
)
_GONE = re.compile(r"(?i)\b404\b|not found|could not find|does not exist|unable to find|unable to parse '\w+' response data")
"""The last pattern is the client's message for a missing project or collection (wandb 0.31, `Artifacts._update_response`)."""

_UNREACHABLE = re.compile(
    r"(?i)giving up after|connection (refused|reset|aborted)|no such host|name resolution|timed? ?out|deadline exceeded"
    r"|\bEOF\b|broken pipe|unreachable|\b(429|50[0-9])\b|most remaining uploads|failed to connect"
    r"|did not respond|service process is busy|rate limit"
    r"|\b403 client error\b(?!.*/graphql)"
)
"""The last pattern is a signed URL that expired before it was used."""

_FULL = re.compile(r"(?i)no space left on device|disk quota exceeded")
"""What a disk of this machine says, not the store."""

FULL_HINT = "Free some space, also where TMPDIR and WANDB_CACHE_DIR are, then run the same command again."

LONGEST_WAIT = 3600.0


def translate(error: Exception, what: str, names: Collection[str] = ()) -> CkptsyncError:
    """The CkptsyncError for a client's error. The client raises every upload failure as a plain ValueError, so the text decides
    (wandb 0.31).

    `names` are those that the user chose: in an error about the run `bert-500`, 500 is no status.
    """
    # Without the query string: a signed URL works for whoever reads it.
    text = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", " ".join(str(error).split())) or type(error).__name__
    shown = text if len(text) <= 300 else f"{text[:140]} … {text[-140:]}"
    message = f"{what} failed: {shown}"
    text = _without(text, names)
    kinds = {each.__name__ for each in type(error).__mro__ if each.__module__.startswith("wandb.")}
    # First, since the client raises AuthenticationError for every failed log-in, also without a network.
    if _UNREACHABLE.search(text) or (_timed_out(error) and not _DENIED.search(text)):
        transient = TransientStoreError(message)
        transient.retry_after = max((asked_to_wait(_headers(each)) for each in _chain(error)), default=0.0)
        return transient
    if _FULL.search(text):
        return TransientStoreError(message, hint=FULL_HINT)
    if "AuthenticationError" in kinds or _DENIED.search(text):
        return RejectedError(f"the W&B server refuses the key: {shown}")
    if _GONE.search(text):
        return NotFoundError(message)
    if _FINAL.search(text) or "UsageError" in kinds:
        return PermanentStoreError(message)
    return TransientStoreError(message)


def _timed_out(error: BaseException) -> bool:
    """Whether a connection or its silence is at the bottom of it: the client wraps that in an AuthenticationError too."""
    return any(isinstance(each, TimeoutError | ConnectionError) for each in _chain(error))


def asked_to_wait(headers: Mapping[str, str]) -> float:
    """The seconds for which a server that limits the rate asks to wait (Retry-After, W&B's RateLimit-Reset), an hour at most."""
    for name in ("Retry-After", "RateLimit-Reset"):
        with contextlib.suppress(KeyError, ValueError):
            return min(max(float(headers[name]), 0.0), LONGEST_WAIT)
    return 0.0


def _headers(error: BaseException) -> Mapping[str, str]:
    """The headers of the answer that a requests.HTTPError carries; empty for any other error."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    return headers if isinstance(headers, Mapping) else {}


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


@contextlib.contextmanager
def translated(what: str, names: Collection[str] = ()) -> Iterator[None]:
    """Raise a CkptsyncError for every other exception in the block."""
    try:
        yield
    except CkptsyncError:
        raise
    except Exception as error:
        raise translate(error, what, names) from error


def _without(text: str, names: Collection[str]) -> str:
    """The text without the names that a pattern would match; a name that is such a word goes only between quotes or slashes."""
    patterns = (_UNREACHABLE, _FULL, _DENIED, _GONE, _FINAL)
    for name in sorted(names, key=len, reverse=True):
        literal = re.escape(name)
        if any(pattern.fullmatch(name) for pattern in patterns):
            text = re.sub(rf"(?<=['\"/<-]){literal}|{literal}(?=['\">/:])", "…", text)
        elif any(pattern.search(name) for pattern in patterns):
            text = text.replace(name, "…")
    return text
