"""Timelines as trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

By the format's rules numbers of processes and threads count from 1 (0 means the idle thread of the system), and what
one thread does must not overlap, so times are whole microseconds.

Source: "Trace Event Format", the document of the Chromium project.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Span(NamedTuple):
    """Something that took time.

    Attributes:
        row: who did it; rows are shown in the order in which they first come, and each does one thing after the other.
        name: what is written on it.
        kind: what it is; those of a kind have a colour.
        begin, end: nanoseconds.
        details: what is shown when it is chosen.
    """

    row: str
    name: str
    kind: str
    begin: int
    end: int
    details: dict[str, Any]


class Count(NamedTuple):
    """From ``at`` (nanoseconds) on, the curve ``name`` has these values."""

    name: str
    at: int
    values: dict[str, float]


def write(
    path: str | os.PathLike[str],
    title: str,
    spans: Iterable[Span],
    counts: Iterable[Count] = (),
    start: int | None = None,
) -> None:
    """Write a timeline.

    Args:
        path: of the JSON file.
        title: of the whole.
        spans, counts: what it shows.
        start: nanoseconds that become 0; by default the first beginning.
    """
    spans = list(spans)
    zero = (min((span.begin for span in spans), default=0) if start is None else start) // 1000
    rows = {row: tid for tid, row in enumerate(dict.fromkeys(span.row for span in spans), 1)}
    events: list[dict[str, Any]] = [{"name": "process_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": title}}]
    for row, tid in rows.items():
        for name, value in (("thread_name", {"name": row}), ("thread_sort_index", {"sort_index": tid})):
            events.append({"name": name, "ph": "M", "pid": 1, "tid": tid, "args": value})
    for span in spans:
        begin = span.begin // 1000
        events.append(
            {"name": span.name, "cat": span.kind, "ph": "X", "pid": 1, "tid": rows[span.row],
             "ts": begin - zero, "dur": span.end // 1000 - begin, "args": span.details}
        )  # fmt: skip
    for count in counts:
        events.append(
            {"name": count.name, "ph": "C", "pid": 1, "tid": 1, "ts": count.at // 1000 - zero, "args": count.values}
        )
    Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")
