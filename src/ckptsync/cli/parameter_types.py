"""Types of option values: sizes, rates and durations with units."""

from __future__ import annotations

import re

import click

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Size(click.ParamType[int]):
    """Bytes, with an optional unit: 500M, 20G, 1.5T (powers of 1024)."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See click."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", str(value).strip().upper())
        if not match:
            self.fail(f"{value!r} is not a size such as 500M or 20G", param, ctx)
        return int(float(match[1]) * 1024 ** (" KMGT".index(match[2] or " ")))


class Rate(Size):
    """Bytes per second: a size, with or without `/s`."""

    name = "rate"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See click."""
        return super().convert(re.sub(r"(?i)/s$", "", str(value).strip()), param, ctx)


class Duration(click.ParamType[float]):
    """Seconds, with an optional unit: 90, 90s, 30m, 12h, 2d."""

    name = "duration"

    def __init__(self, *, positive: bool = False) -> None:
        self._positive = positive

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See click."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", str(value).strip().lower())
        if not match:
            self.fail(f"{value!r} is not a duration such as 90, 30m or 12h", param, ctx)
        if self._positive and not float(match[1]):
            self.fail(f"{value!r} is too short", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]
