"""MongoDB-like filters and orders, as wandb's public API sends them. Pure: a function that it is given looks up the values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from graphql import GraphQLError

from ckptsync.server.resolvers.patterns import contains

Row = Mapping[str, Any]
Lookup = Callable[[str], Any]
RowLookup = Callable[[Row, str], Any]

MAX_INTEGER = 2**63 - 1
"""The largest one that SQLite has."""


def parse_filters(text: str | None) -> dict[str, Any]:
    """The parsed filter of a query. An empty filter matches everything."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        raise GraphQLError("filters is not JSON") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise GraphQLError("filters has the wrong type")
    return value


def column(row: Row, name: str) -> Any:
    """The look-up for rows whose filters use the names of columns."""
    return row.get(name)


def selected(rows: Sequence[Row], filters: str | None, look_up: RowLookup) -> list[Row]:
    """The rows that match the filter of a query."""
    condition = parse_filters(filters)
    return [row for row in rows if matches(condition, partial(look_up, row))]


def names_in(filters: Mapping[str, Any]) -> set[str]:
    """The names whose values decide whether a row matches."""
    found: set[str] = set()
    for name, condition in filters.items():
        if not name.startswith("$"):
            found.add(name)
            continue
        parts = condition if isinstance(condition, list) else [condition]
        found.update(*(names_in(part) for part in parts if isinstance(part, dict)))
    return found


def matches(filters: Mapping[str, Any], lookup: Lookup) -> bool:
    """True if the values that `lookup` finds match every condition."""
    return all(_clause(name, condition, lookup) for name, condition in filters.items())


def _clause(name: str, condition: Any, lookup: Lookup) -> bool:
    if name in ("$and", "$or", "$nor"):
        if not isinstance(condition, list) or not all(isinstance(part, dict) for part in condition):
            raise GraphQLError(f"{name} takes a list of filters")
        if name == "$and":
            return all(matches(part, lookup) for part in condition)
        return any(matches(part, lookup) for part in condition) == (name == "$or")
    if name == "$not":
        return not matches(condition, lookup)
    value = lookup(name)
    if isinstance(condition, dict) and any(key.startswith("$") for key in condition):
        return all(_holds(operator, value, operand) for operator, operand in condition.items())
    return _holds("$eq", value, condition)


def _holds(operator: str, value: Any, operand: Any) -> bool:
    if operator == "$eq":
        return bool(value == operand or (isinstance(value, list) and operand in value))
    if operator == "$ne":
        return not _holds("$eq", value, operand)
    if operator in ("$in", "$nin"):
        if not isinstance(operand, list):
            raise GraphQLError(f"{operator} takes a list")
        return any(_holds("$eq", value, choice) for choice in operand) == (operator == "$in")
    if operator == "$exists":
        return (value is not None) == bool(operand)
    if operator == "$not":
        return not all(_holds(name, value, inner) for name, inner in operand.items())
    if operator == "$contains":
        return operand in value if isinstance(value, (list, str)) else False
    if operator == "$regex":
        return contains(operand, value) if isinstance(value, str) else False
    if operator in ("$gt", "$gte", "$lt", "$lte"):
        return _compares(operator, value, operand)
    raise GraphQLError(f"unknown filter operator {operator}")


def _compares(operator: str, value: Any, operand: Any) -> bool:
    try:
        return bool(
            {
                "$gt": lambda: value > operand,
                "$gte": lambda: value >= operand,
                "$lt": lambda: value < operand,
                "$lte": lambda: value <= operand,
            }[operator]()
        )
    except TypeError:
        return False


def ordered(rows: Sequence[Row], order: str | None, look_up: RowLookup) -> list[Row]:
    """The rows sorted by `+name` or `name` (ascending) or `-name` (descending). Rows without a value come last."""
    if not order:
        return list(rows)
    name = order.lstrip("+-")
    present = [row for row in rows if look_up(row, name) is not None]
    absent = [row for row in rows if look_up(row, name) is None]
    present.sort(key=lambda row: _comparable(sort_key(look_up(row, name))), reverse=order.startswith("-"))
    return present + absent


def _comparable(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


def sort_key(value: Any) -> int | float | str | None:
    """What a value sorts by, as SQLite can store it. Numbers come before texts."""
    if isinstance(value, int):
        return value if abs(value) <= MAX_INTEGER else float("inf" if value > 0 else "-inf")
    return value if value is None or isinstance(value, float) else str(value)
