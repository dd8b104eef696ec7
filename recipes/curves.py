"""Pictures of runs, and the bands of several seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.train import History


def figure(columns: int = 2, height: float = 4.0, rows: int = 1, width: float = 6.0) -> tuple[Any, Any]:
    """A matplotlib figure that needs no display, and its axes, row by row in one array; sizes are in inches.

    Args:
        columns, rows: of axes.
        height: of all.
        width: of a column.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width * columns, height), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots(rows, columns, squeeze=False).ravel()


def smoothed(values: Sequence[float], points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Means of consecutive stretches, at most ``points`` of them: (middle of each stretch, mean)."""
    parts = np.array_split(np.asarray(values, float), min(points, max(len(values), 1)))
    middles = np.cumsum([0] + [len(p) for p in parts[:-1]]) + np.array([(len(p) - 1) / 2 for p in parts])
    return middles, np.array([p.mean() if len(p) else np.nan for p in parts])


def draw(runs: dict[str, History], path: Path, title: str = "") -> None:
    """Losses and accuracies of several runs, each in its colour, in one picture.

    Lines are the training batches (means of short stretches), dots the validation set after each
    epoch.
    """
    made, (left, right) = figure()
    for number, (name, history) in enumerate(runs.items()):
        colours = (f"C{number % 10}",) * 2
        for axes, pick in ((left, "loss"), (right, "accuracy")):
            curve(axes, history, pick, colours, (name, None))
    left.set(xlabel="step", ylabel="loss", yscale="log")
    right.set(xlabel="step", ylabel="accuracy, %")
    near_the_top(right, runs.values())
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if len(runs) > 1:
            axes.legend(fontsize=8)
    made.suptitle(f"{title}{': ' if title else ''}lines: training batches, dots: validation", fontsize=10)
    made.savefig(path, dpi=110)


def curve(
    axes: Any, history: History, pick: str, colours: Sequence[str], names: Sequence[str | None] = (None, None)
) -> None:
    """Draw the ``"loss"`` or the ``"accuracy"`` (in percent) of a run, as :func:`draw` does.

    Args:
        axes: matplotlib's.
        history: of the run.
        pick: which of the two.
        colours, names: of the line and of the dots; without a name it is not in the legend.
    """
    if not history.steps:
        return
    scale = 100 if pick == "accuracy" else 1
    x, y = smoothed([getattr(step, pick) for step in history.steps])
    axes.plot(x + 1, scale * y, color=colours[0], linewidth=1.2, alpha=0.8, label=names[0])
    ends = np.searchsorted([step.epoch for step in history.steps], [e.epoch for e in history.epochs], side="right")
    marks = [scale * getattr(epoch, f"validation_{pick}") for epoch in history.epochs]
    axes.plot(ends, marks, ".", color=colours[1], markersize=7, label=names[1])


def near_the_top(axes: Any, histories: Iterable[History]) -> None:
    """Show accuracies from 80 % up, if all runs end there, with room below the worst."""
    finals = [100 * e.validation_accuracy for h in histories for e in h.epochs[-1:] if e.validation_accuracy > 0]
    if finals and min(finals) > 80:
        axes.set_ylim(min(80, min(finals) - 5), 100.3)


@dataclass(frozen=True)
class Named:
    """A stretch of steps of which a figure is known: steps [first, last), negative ones from the end."""

    name: str
    first: int
    last: int | None
    figure: float


@dataclass(frozen=True)
class Band:
    """The smallest, median and largest loss of several seeds over a named stretch."""

    named: Named
    low: float
    median: float
    high: float

    @property
    def holds(self) -> bool:
        """Whether the known figure lies in the band."""
        return self.low <= self.named.figure <= self.high

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "does NOT hold"
        return (
            f"{self.named.name:28s} band {self.low:8.4f} … {self.high:8.4f} (median {self.median:.4f}) "
            f"{verdict} the figure {self.named.figure:g}"
        )


def bands(histories: Sequence[History], named: Sequence[Named]) -> list[Band]:
    """The band of the recorded batch losses over all seeds, for each named stretch."""
    found = []
    for stretch in named:
        losses = np.array([step.loss for h in histories for step in h.steps[stretch.first : stretch.last]])
        found.append(Band(stretch, float(losses.min()), float(np.median(losses)), float(losses.max())))
    return found
