"""Text from a store, made safe to show: a terminal obeys control characters, and could be made to show another command."""

from __future__ import annotations


def visible(text: str, *, lines: bool = False) -> str:
    """The text with every character that isn't printable as an escape; with `lines`, line breaks stay."""
    kept = "\n" if lines else ""
    return "".join(each if each.isprintable() or each in kept else _escape(each) for each in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
