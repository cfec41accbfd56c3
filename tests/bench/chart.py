"""Draws several runs as a chart and a table: `python -m tests.bench.chart RESULT.json… CHART.svg TABLE.md`.

A bar is the share that ckptsync takes of what the alternative takes, on a logarithmic scale; the mark is the target, the line the
spread of all rounds.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tests.bench.row import Row
from tests.bench.table import markdown

LEFT, RIGHT, LINE, TOP = 430, 330, 22, 46
LEAST, MOST = 0.0001, 5.0
OURS, SHORT, MARK, INK, FAINT = "#2a7f9e", "#c8553d", "#222222", "#333333", "#d8d8d8"


def main(arguments: Sequence[str]) -> int:
    """Read what the runs wrote with --json, and write the chart and the table."""
    *results, chart, table = map(Path, arguments)
    reports = [json.loads(path.read_text("utf-8")) for path in results]
    runs: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for report in reports:
        for row in map(row_of, report["rows"]):
            runs[row.noun, row.what, row.against].append(row)
    rows = [together(each) for each in runs.values()]
    chart.write_text(svg([row for row in rows if row.against], reports[0]["machine"]), "utf-8")
    table.write_text(markdown(rows, [[run.value for run in each] for each in runs.values()]), "utf-8")
    return 0


def row_of(value: dict[str, Any]) -> Row:
    """A row from its JSON."""
    return Row(**{name: each for name, each in value.items() if name != "ok"})


def together(runs: Sequence[Row]) -> Row:
    """The median of the runs, with the spread of all their rounds."""
    first = runs[0]
    theirs = [run.theirs for run in runs if run.theirs is not None]
    return Row(
        *(first.noun, first.what, first.against, first.unit),
        statistics.median(run.ours for run in runs),
        statistics.median(theirs) if theirs else None,
        statistics.median(run.value for run in runs),
        min(run.low for run in runs),
        max(run.high for run in runs),
        runs[-1].target,
        sum(run.rounds for run in runs),
    )


def svg(rows: Sequence[Row], machine: dict[str, Any]) -> str:
    """The chart, without scripts or embedded fonts."""
    height = TOP + LINE * len(rows) + 30
    width = LEFT + RIGHT + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(10, 16, "What ckptsync takes, as a share of what the other takes; shorter is better", size=13),
        _text(
            10, 32, f"{machine['processors']}, wandb {machine['versions']['wandb']}; mark: the target; line: the rounds' spread"
        ),
    ]
    for value in (0.0001, 0.001, 0.01, 0.1, 1.0):
        parts.append(f'<path d="M{_x(value):.1f} {TOP - 4}V{height - 24}" stroke="{INK if value == 1 else FAINT}"/>')
        parts.append(_text(_x(value), height - 10, f"{value:g}", anchor="middle"))
    for number, row in enumerate(rows):
        parts += _bar(row, TOP + LINE * number)
    return "\n".join([*parts, "</svg>\n"])


def _bar(row: Row, top: int) -> list[str]:
    middle = top + LINE / 2
    end, colour = _x(row.value), OURS if row.ok else SHORT
    parts = [
        _text(LEFT - 8, middle + 4, f"{row.what} / {row.against}", anchor="end", size=9),
        f'<rect x="{LEFT}" y="{top + 4}" width="{max(end - LEFT, 1):.1f}" height="{LINE - 8}" fill="{colour}"/>',
        f'<path d="M{_x(row.low):.1f} {middle}H{_x(row.high):.1f}" stroke="{INK}"/>',
        _text(max(end, _x(row.high)) + 5, middle + 4, f"{row.value:.2g}"),
    ]
    if row.target is not None:
        parts.append(f'<path d="M{_x(row.target):.1f} {top + 2}v{LINE - 4}" stroke="{MARK}" stroke-width="2"/>')
    return parts


def _x(value: float) -> float:
    clipped = min(max(value, LEAST), MOST)
    return LEFT + RIGHT * math.log(clipped / LEAST) / math.log(MOST / LEAST)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}">{escape(text)}</text>'


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
