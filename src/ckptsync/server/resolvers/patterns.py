"""Patterns from clients, matched in time linear in the text.

Python's `re` backtracks, for years on a pattern like `(a|aa)+$`, and holds the GIL meanwhile, so the whole process hangs. RE2 has
neither backreferences nor look-around assertions, the features that need backtracking.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from graphql import GraphQLError

MAX_PATTERN = 200
MAX_LIKE = 1024


def contains(pattern: Any, text: str) -> bool:
    """True if a regular expression matches somewhere in the text."""
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        raise GraphQLError(f"$regex takes a pattern of at most {MAX_PATTERN} characters")
    return _compiled(pattern).search(_utf8(text)) is not None


def is_like(pattern: str, text: str) -> bool:
    """True if SQL's LIKE pattern, in which `%` is any text and `_` any character, matches the whole text."""
    if len(pattern) > MAX_LIKE:
        raise GraphQLError(f"a pattern has at most {MAX_LIKE} characters")
    return _compiled(_like(pattern)).fullmatch(_utf8(text)) is not None


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> Any:
    try:
        import re2
    except ImportError:
        raise GraphQLError("patterns need google-re2, which is not installed: pip install 'ckptsync[server]'") from None
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(_utf8(pattern), options)
    except re2.error as error:
        raise GraphQLError(f"$regex takes a regular expression that RE2 supports: {error}") from None


@lru_cache(maxsize=64)
def _like(pattern: str) -> str:
    import re2

    return "(?s)" + "".join({"%": ".*", "_": "."}.get(letter) or re2.escape(letter) for letter in pattern)


def _utf8(text: str) -> bytes:
    # A lone surrogate, which JSON may contain, has no encoding.
    return text.encode(errors="replace")
