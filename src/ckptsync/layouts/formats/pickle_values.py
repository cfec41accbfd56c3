"""What a pickle says, as inert data: the values that stand for its dictionaries, its imports and its calls.

None of them imports, calls or hashes anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A name that the pickle asks to import; it was not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Items:
    """A dictionary as its pairs in order; no key was hashed."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    def get(self, key: str) -> Any:
        """The last value of a text key, or None."""
        return next((value for name, value in reversed(self.pairs) if isinstance(name, str) and name == key), None)


@dataclass(slots=True, eq=False)
class Call:
    """A call that the pickle asks for and that was not made: the callable, its arguments, and the state set on the result."""

    by: Any
    arguments: Any
    state: Any = None
    items: Items = field(default_factory=Items)


@dataclass(frozen=True, slots=True)
class Content:
    """The value of a pickle, every global that it names, and every call that it asks for."""

    value: Any
    globals: tuple[Global, ...]
    calls: tuple[Call, ...]
