"""What a pass over a loader tells: when each batch was asked for, read, copied, taken, and what held the run back."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ...kernels import _trace_events
from ...kernels._errors import ArgumentError
from ...kernels._text import duration

#: Waiting for less than this share of the time is nothing to speak of.
_LITTLE = 0.05
#: Of the timeline.
_COLOURS = {"reading": "#4c78a8", "copying": "#b279a2", "waiting": "#e45756", "computing": "#54a24b"}


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
        """What held the run back, and by how much; times of one batch are medians."""
        if len(self.steps) < 2:
            return "too few batches to say what held the run back"
        waited = self.waiting.sum()
        total = waited + self.computing.sum()
        readers = f" by one of {self.readers} readers" if self.readers > 1 else ""
        rest = (
            f"waiting for data took {duration(waited)} of {duration(total)} ({waited / total:.0%}); a batch took "
            f"{duration(np.median(self.reading))} to read{readers}, "
            + (f"{duration(np.median(self.copying))} to copy, " if len(self.copying) else "")
            + f"{duration(np.median(self.computing))} to compute with"
        )
        return f"{self.held_back_by()} held the run back: {rest}{self._advice()}"

    def held_back_by(self) -> str:
        """``"computing"``, ``"reading"`` or ``"copying"``."""
        if len(self.steps) < 2 or self.waiting.sum() <= _LITTLE * (self.waiting.sum() + self.computing.sum()):
            return "computing"
        a_batch = np.median(self.reading) / max(1, self.readers)
        return "copying" if len(self.copying) and np.median(self.copying) > a_batch else "reading"

    def _advice(self) -> str:
        if self.quick:
            return "; a batch as quick as that needs no reader"
        if self.held_back_by() != "reading":
            return ""
        wanted = max(1, math.ceil(np.median(self.reading) / max(np.median(self.computing), 1e-9)))
        if self.readers == 0:
            return "; num_workers=1 would read beside computing"
        return f"; {wanted} readers might keep up" if self.readers < wanted <= 64 else ""

    def _shown(self, first: int, count: int) -> list[Step]:
        shown = self.steps[first : first + count]
        if not shown:
            raise ArgumentError(f"timing: first must be below the {len(self.steps)} batches; got {first}")
        return shown

    def timeline(self, path: str | os.PathLike[str], *, first: int = 0, count: int = 40) -> None:
        """Draw who did what when: each reader, copying, training (which waits or computes), and the full queue.

        Bars bear the number of their batch where there is room.

        Args:
            path: of the picture, PNG, PDF or SVG by its name.
            first, count: which batches.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        shown = self._shown(first, count)
        spans = _spans(shown, self.readers)
        start, end = min(span.begin for span in spans), max(span.end for span in spans)
        rows = list(dict.fromkeys(span.row for span in spans))
        figure = Figure(figsize=(11, 1.9 + 0.42 * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[len(rows), 1.2])
        for span in spans:
            begin, took = (span.begin - start) / 1e6, (span.end - span.begin) / 1e6
            row = rows.index(span.row)
            axes.barh(row, took, 0.82, begin, color=_COLOURS[span.what], edgecolor="white", linewidth=0.5)
            if took > 0.009 * len(str(span.number)) * (end - start) / 1e6:
                middle = begin + took / 2
                axes.text(middle, row, str(span.number), color="white", fontsize=7, ha="center", va="center")
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.tick_params(length=0)
        present = [what for what in _COLOURS if any(span.what == what for span in spans)]
        figure.legend(
            [Patch(color=_COLOURS[what]) for what in present], present, loc="outside right upper", frameon=False,
            fontsize=8,
        )  # fmt: skip
        axes.set_title("\n".join(textwrap.wrap(str(self), 135)), fontsize=9, loc="left")
        below.fill_between(
            [(step.asked - start) / 1e6 for step in shown], [step.ready for step in shown], step="post", color="0.75"
        )
        below.set_ylabel("batches\nready", rotation=0, ha="right", va="center")
        below.yaxis.get_major_locator().set_params(integer=True, nbins=3)
        below.set_ylim(0, max(1, *(step.ready for step in shown)) + 0.2)
        below.set_xlim(0, (end - start) / 1e6)
        below.set_xlabel("milliseconds")
        for part in (axes, below):
            part.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=120)

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Write all of it as trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing open."""
        _trace_events.write(
            path,
            f"epoch {self.epoch}",
            [
                _trace_events.Span(
                    span.row, f"{span.what} {span.number}", span.what, span.begin, span.end, {"batch": span.number}
                )
                for span in _spans(self.steps, self.readers)
            ],
            [_trace_events.Count("ready", step.asked, {"batches": step.ready}) for step in self.steps],
        )


class _Span(NamedTuple):
    """Something that took time: who did it, what it was, for which batch, and nanoseconds."""

    row: str
    what: str
    number: int
    begin: int
    end: int


def _spans(steps: Sequence[Step], readers: int) -> list[_Span]:
    """All that took time, row by row; on a row one thing comes after the other."""
    spans = [
        _Span(f"reader {step.reader}" if readers else "training", "reading", step.number, step.begun, step.ended)
        for step in sorted(steps, key=lambda step: step.reader)
    ]
    free = 0  # copies are given to one stream: each begins when it was given, or when the one before has ended
    for step in sorted((step for step in steps if step.copied is not None), key=lambda step: step.ended):
        begin = max(step.ended, free)
        free = begin + int(step.copied.seconds() * 1e9)
        spans.append(_Span("copy", "copying", step.number, begin, free))
    if readers:
        spans += [_Span("training", "waiting", step.number, step.asked, step.taken) for step in steps]
    for step, after in pairwise(steps):
        spans.append(_Span("training", "computing", step.number, step.taken, after.asked))
    return spans
