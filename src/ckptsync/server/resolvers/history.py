"""Reads what a run logged: history rows, system events and console lines, all of them, sampled, or within bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ckptsync.server.resolvers.context import Call, Row, parsed, resolves
from ckptsync.server.resolvers.paging import page

DEFAULT_SAMPLES = 500
MAX_SAMPLES = 1_000_000
LAST_STEP = 2**62


@resolves("Run.historyLineCount")
def history_line_count(source: Row, call: Call) -> int:
    return _next_line(call, "history", source)


@resolves("Run.eventsLineCount")
def events_line_count(source: Row, call: Call) -> int:
    return _next_line(call, "events", source)


@resolves("Run.logLineCount")
def log_line_count(source: Row, call: Call) -> int:
    return _next_line(call, "console", source)


def _next_line(call: Call, table: str, run: Row) -> int:
    # A resumed client continues at this line. A count of the rows would overwrite rows after a gap.
    found = call.row(f"SELECT max(line) AS line FROM {table} WHERE run_id = ?", run["id"])  # noqa: S608
    return 0 if found is None or found["line"] is None else int(found["line"]) + 1


@resolves("Run.historyTail")
def history_tail(source: Row, call: Call) -> str:
    return _tail(call, "history", source)


@resolves("Run.eventsTail")
def events_tail(source: Row, call: Call) -> str:
    return _tail(call, "events", source)


def _tail(call: Call, table: str, run: Row) -> str:
    last = call.row(f"SELECT content FROM {table} WHERE run_id = ? ORDER BY line DESC LIMIT 1", run["id"])  # noqa: S608
    return json.dumps([last["content"]] if last else [])


@resolves("Run.systemMetrics")
def system_metrics(source: Row, call: Call) -> str:
    last = call.row("SELECT content FROM events WHERE run_id = ? ORDER BY line DESC LIMIT 1", source["id"])
    return last["content"] if last else "{}"


def rows_between(call: Call, run: Row, first: int, last: int) -> list[str]:
    """The history rows with first <= step <= last, ordered by step."""
    found = call.rows(
        "SELECT content FROM history WHERE run_id = ? AND step BETWEEN ? AND ? ORDER BY step, line",
        run["id"],
        first,
        last,
    )
    return [row["content"] for row in found]


def sampled(rows: Sequence[Any], count: int | None) -> Sequence[Any]:
    """At most `count` rows, evenly spaced, including the first and the last."""
    wanted = min(DEFAULT_SAMPLES if count is None else max(count, 0), MAX_SAMPLES)
    if len(rows) <= wanted:
        return rows
    if wanted < 2:
        return rows[:wanted]
    return [rows[round(index * (len(rows) - 1) / (wanted - 1))] for index in range(wanted)]


@resolves("Run.history")
def run_history(
    source: Row,
    call: Call,
    min_step: int | None = None,
    max_step: int | None = None,
    samples: int | None = None,
) -> Sequence[str]:
    """Rows as JSON text. max_step is exclusive: HistoryPage requests pages of max_step - min_step rows (wandb 0.31.0)."""
    last = LAST_STEP if max_step is None else max_step - 1
    return sampled(rows_between(call, source, min_step or 0, last), samples)


@resolves("Run.sampledHistory")
def run_sampled_history(source: Row, call: Call, specs: list[str]) -> list[Any]:
    return [_sampled_history(call, source, parsed(spec, dict, "spec")) for spec in specs]


def _sampled_history(call: Call, run: Row, spec: dict[str, Any]) -> Sequence[Row]:
    """The rows that have all keys of a spec, reduced to these keys. maxStep is inclusive here."""
    keys = [str(key) for key in spec.get("keys") or []]
    first, last = spec.get("minStep"), spec.get("maxStep")
    rows = rows_between(call, run, int(first or 0), LAST_STEP if last is None else int(last))
    found = []
    for text in rows:
        row = json.loads(text)
        values = {key: _value(row, key) for key in keys}
        if all(value is not None for value in values.values()):
            found.append(values)
    return sampled(found, int(spec.get("samples") or DEFAULT_SAMPLES))


def _value(row: Any, key: str) -> Any:
    """A row's value by key, or by a dotted path for a nested value."""
    if isinstance(row, dict) and key in row:
        return row[key]
    head, _, rest = key.partition(".")
    return _value(row[head], rest) if rest and isinstance(row, dict) and head in row else None


@resolves("Run.parquetHistory")
def parquet_history(_source: Row, _call: Call, **_arguments: Any) -> Row:
    """Empty, since nothing is exported to parquet: clients then read history and sampledHistory."""
    return {"parquetUrls": [], "liveData": []}


@resolves("Run.historyKeys")
def history_keys(source: Row, call: Call) -> Row | None:
    """The logged metrics and how often each was logged; `a.b` is the value b of a nested dict. Null before the first row."""
    rows = rows_between(call, source, 0, LAST_STEP)
    if not rows:
        return None
    keys: dict[str, dict[str, Any]] = {}
    last_step = -1
    for text in rows:
        row = json.loads(text)
        last_step = max(last_step, row.get("_step", -1))
        for name, value in _metrics(row):
            known = keys.setdefault(name, {"typeCounts": [{"type": _type_name(value), "count": 0}], "monotonic": False})
            known["typeCounts"][0]["count"] += 1
            known["previousValue"] = value
    return {"sets": [], "keys": keys, "lastStep": last_step}


def _metrics(row: Row) -> Iterator[tuple[str, Any]]:
    """A row's values by name, with dotted names for what nested dicts hold. Media, which are dicts with a `_type`, stay whole."""
    nested = [("", row)]
    while nested:
        prefix, values = nested.pop()
        for name, value in values.items():
            if isinstance(value, dict) and "_type" not in value:
                nested.append((f"{prefix}{name}.", value))
            else:
                yield prefix + name, value


def _type_name(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "string"
    return {int: "number", float: "number", str: "string", list: "list"}.get(type(value), "map")


@resolves("Run.events")
def run_events(source: Row, call: Call, samples: int | None = None) -> Sequence[str]:
    rows = call.rows("SELECT content FROM events WHERE run_id = ? ORDER BY line", source["id"])
    return sampled([row["content"] for row in rows], samples)


@resolves("Run.logLines")
def log_lines(
    source: Row,
    call: Call,
    first: int | None = None,
    after: str | None = None,
    last: int | None = None,
    **_arguments: Any,
) -> Row:
    rows = call.rows("SELECT line, content FROM console WHERE run_id = ? ORDER BY line", source["id"])
    if last is not None:
        rows = rows[-last:] if last > 0 else []
    return page(rows, first, after, node=_log_line, key=lambda row: row["line"])


def _log_line(row: Row) -> Row:
    """A console line as the client sends it: `[ERROR ]timestamp text`."""
    text = row["content"]
    level = "error" if text.startswith("ERROR ") else None
    stamp, _, line = text.removeprefix("ERROR ").partition(" ")
    if "T" not in stamp:
        stamp, line = "", text
    return {"number": row["line"], "timestamp": stamp or None, "level": level, "line": line}
