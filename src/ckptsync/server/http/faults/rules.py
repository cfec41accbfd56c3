"""Fault rules: which requests a rule matches, how many of them it hits, and what it does to them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ACTIONS = {"status", "headers", "delay", "throttle", "drop", "corrupt", "graphql_errors"}


class InvalidRuleError(ValueError):
    """A malformed rule. The message says what is wrong with it."""


@dataclass(slots=True)
class Rule:
    """One fault: which requests it hits, how many of them, and how they fail."""

    match: Mapping[str, str]
    action: Mapping[str, Any]
    skip: int = 0
    count: int | None = None
    matched: int = 0
    hits: int = 0

    @classmethod
    def parse(cls, given: Any) -> Rule:
        if not isinstance(given, dict) or not isinstance(given.get("action"), dict) or not given["action"]:
            raise InvalidRuleError("a rule needs an action")
        match = given.get("match") or {}
        unknown = ({*given} - {"match", "skip", "count", "action"}) | ({*match} - {"path", "operation", "method"})
        unknown |= {*given["action"]} - ACTIONS
        if unknown:
            raise InvalidRuleError(f"unknown keys in a rule: {', '.join(sorted(unknown))}")
        return cls(match, given["action"], given.get("skip", 0), given.get("count"))

    def takes(self, method: str, path: str, operation: str | None) -> bool:
        """Count a matching request. True if the fault hits it."""
        if not re.search(self.match.get("path", ""), path):
            return False
        if self.match.get("operation", operation) != operation or self.match.get("method", method) != method:
            return False
        self.matched += 1
        if self.matched <= self.skip or (self.count is not None and self.hits >= self.count):
            return False
        self.hits += 1
        return True

    def shown(self) -> dict[str, Any]:
        return {"match": dict(self.match), "action": dict(self.action), "matched": self.matched, "hits": self.hits}
