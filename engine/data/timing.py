"""What a pass over a loader tells: when each batch was asked for, read, copied, taken, and what held the run back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...kernels._errors import ArgumentError

#: Waiting for less than this share of the time is nothing to speak of.
_LITTLE = 0.05


class Step(NamedTuple):
    """One batch's times, in nanoseconds of ``time.perf_counter_ns``.

    Attributes:
        number: which batch of the epoch.
        asked, taken: when training asked for it, and when it had it.
        ready: how many batches lay ready when it asked.
        begun, ended: of reading it.
        reader: who read it.
        copied: what knows the time of its copy to the device; None without one.
    """

    number: int
    asked: int
    taken: int
    ready: int
    begun: int
    ended: int
    reader: int
    copied: Any


class Timing:
    """The times of one pass; printing it says in a sentence what held the run back.

    Computing is what training does between taking a batch and asking for the next.  Work that a GPU
    was given and has not done by then is not in it, but shows as soon as training waits for the GPU.

    Args:
        steps: in order.
        readers: how many there were; 0 if training made the batches itself.
        epoch: of the pass.
        quick: whether a batch is made so quickly that to hand it over would take longer.

    Attributes:
        waiting: per batch, the seconds that training waited for it.
        computing: per batch but the last, the seconds until the next was asked for.
        reading: per batch, the seconds that reading it took.
        copying: per batch, the seconds that its copy to the device took; empty without a GPU.
        ready: per batch, how many lay ready when training asked.
    """

    def __init__(self, steps: Sequence[Step], readers: int, epoch: int, quick: bool = False) -> None:
        self.steps, self.readers, self.epoch, self.quick = list(steps), readers, epoch, quick
        times = np.array([step[1:6] for step in self.steps], np.int64).reshape(-1, 5)
        asked, taken, ready, begun, ended = times.T
        self.waiting = (taken - asked) / 1e9
        self.computing = (asked[1:] - taken[:-1]) / 1e9
        self.reading = (ended - begun) / 1e9
        self.copying = np.array([step.copied.seconds() for step in self.steps if step.copied is not None])
        self.ready = ready

    def __str__(self) -> str:
        return f"epoch {self.epoch}: {self.sentence()}"

    def sentence(self) -> str:
        """What held the run back, and by how much."""
        if len(self.steps) < 2:
            return "too few batches to say what held the run back"
        waited, computed = self.waiting.sum(), self.computing.sum()
        share = waited / (waited + computed)
        rest = (
            f"waiting for data took {_time(waited)} of {_time(waited + computed)} ({share:.0%}); a batch took "
            f"{_time(self.reading.mean())} to read{f' by one of {self.readers} readers' if self.readers > 1 else ''}, "
            + (f"{_time(self.copying.mean())} to copy, " if len(self.copying) else "")
            + f"{_time(self.computing.mean())} to compute with"
        )
        return f"{self.held_back_by()} held the run back: {rest}{self._advice()}"

    def held_back_by(self) -> str:
        """``"computing"``, ``"reading"`` or ``"copying"``."""
        if len(self.steps) < 2 or self.waiting.sum() <= _LITTLE * (self.waiting.sum() + self.computing.sum()):
            return "computing"
        a_batch = self.reading.mean() / max(1, self.readers)
        return "copying" if len(self.copying) and self.copying.mean() > a_batch else "reading"

    def _advice(self) -> str:
        if self.quick:
            return "; a batch as quick as that needs no reader"
        if self.held_back_by() != "reading":
            return ""
        wanted = max(1, math.ceil(self.reading.mean() / max(self.computing.mean(), 1e-9)))
        if self.readers == 0:
            return "; num_workers=1 would read beside computing"
        return f"; {wanted} readers might keep up" if self.readers < wanted <= 64 else ""

    def _shown(self, first: int, count: int) -> list[Step]:
        shown = self.steps[first : first + count]
        if not shown:
            raise ArgumentError(f"timing: first must be below the {len(self.steps)} batches; got {first}")
        return shown

    def timeline(self, path: str | os.PathLike[str], *, first: int = 0, count: int = 40) -> None:
        """Draw reading, copying, waiting and computing side by side, and how full the queue was.

        Args:
            path: of the picture, PNG, PDF or SVG by its name.
            first, count: which batches.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        shown = self._shown(first, count)
        start = min(step.begun for step in shown)
        figure = Figure(figsize=(11, 1.6 + 0.35 * (max(1, self.readers) + 2)), layout="constrained")
        FigureCanvasAgg(figure)
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[max(1, self.readers) + 2, 1.4])
        rows: dict[str, list[tuple[float, float]]] = {}
        for name, _, begun, ended in _spans(shown, self.readers):
            rows.setdefault(name, []).append(((begun - start) / 1e6, (ended - begun) / 1e6))
        for place, (name, spans) in enumerate(rows.items()):
            colours = {"waiting": "tab:red", "computing": "tab:green", "copy": "tab:orange"}
            axes.broken_barh(spans, (place - 0.4, 0.8), color=colours.get(name, "tab:blue"), edgecolor="white")
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.set_title(str(self), fontsize=8, wrap=True)
        below.step([(s.asked - start) / 1e6 for s in shown], [s.ready for s in shown], where="post", color="black")
        below.set_ylabel("ready")
        below.set_ylim(bottom=0)
        below.set_xlabel("milliseconds")
        figure.savefig(path, dpi=120)

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Write all of it as trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing open."""
        rows: dict[str, int] = {}
        events: list[dict[str, Any]] = []
        start = min((step.begun for step in self.steps), default=0)
        for name, number, begun, ended in _spans(self.steps, self.readers):
            row = rows.setdefault(name, len(rows))
            what = "read" if name.startswith("read") else name
            events.append(
                {"name": f"{what} {number}", "cat": what, "ph": "X", "pid": 0, "tid": row,
                 "ts": (begun - start) / 1e3, "dur": (ended - begun) / 1e3, "args": {"batch": number}}
            )  # fmt: skip
        for step in self.steps:
            at = (step.asked - start) / 1e3
            events.append({"name": "ready", "ph": "C", "pid": 0, "ts": at, "args": {"batches": step.ready}})
        for name, row in rows.items():
            events.append({"name": "thread_name", "ph": "M", "pid": 0, "tid": row, "args": {"name": name}})
        Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def _spans(steps: Sequence[Step], readers: int) -> list[tuple[str, int, int, int]]:
    """(row, batch, begin, end) of everything that took time; a copy is drawn from the moment it was given."""
    spans = []
    for step in sorted(steps, key=lambda step: step.reader):
        name = f"reader {step.reader}" if readers else "reading"
        spans.append((name, step.number, step.begun, step.ended))
    for step in steps:
        if step.copied is not None:
            spans.append(("copy", step.number, step.ended, step.ended + int(step.copied.seconds() * 1e9)))
    spans += [("waiting", step.number, step.asked, step.taken) for step in steps if readers]
    for step, after in pairwise(steps):
        spans.append(("computing", step.number, step.taken, after.asked))
    return spans


def _time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
