"""What a report shows of a run, each drawn into axes of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine.train import History
from ..engine.train.distributions import Distribution
from .curves import curve, near_the_top

#: Colours by what they are of; a page gives them others where it is dark.
INK, GRID, TRAIN, CHECK, BAND = "#23282d", "#d9dee3", "#1b6ac8", "#c8501c", "#2e7d6a"
#: Pairs of quantiles between which a band lies, the widest first, and how strong it is.
_BANDS = ((0, 8, 0.15), (1, 7, 0.2), (2, 6, 0.25), (3, 5, 0.35))


def styled(axes: Any, x: str = "", y: str = "") -> None:
    """Quiet axes: two spines, a grid, small numbers."""
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.tick_params(which="both", colors=INK, labelsize=8, length=2)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=INK, linewidth=0.6)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, labelcolor=INK, frameon=False)


def accuracy(axes: Any, history: History) -> None:
    """Accuracy of training and validation."""
    curve(axes, history, "accuracy", (TRAIN, CHECK), ("training", "validation"))
    near_the_top(axes, [history])
    styled(axes, "step", "%")
    _legend(axes)


def loss(axes: Any, history: History) -> None:
    """Loss of training and validation, on a logarithmic scale."""
    curve(axes, history, "loss", (TRAIN, CHECK), ("training", "validation"))
    if any(step.loss > 0 for step in history.steps):
        axes.set_yscale("log")
    styled(axes, "step")
    _legend(axes)


def learning_rate(axes: Any, history: History) -> None:
    """The learning rate of each step."""
    rates = [step.lr for step in history.steps]
    shown = np.unique(np.linspace(0, len(rates) - 1, min(len(rates), 400)).astype(int))
    axes.plot(shown + 1, [rates[i] for i in shown], color=TRAIN, linewidth=1.4)
    axes.set_ylim(0, 1.08 * max(rates, default=1) or 1)
    styled(axes, "step")


def times(axes: Any, history: History) -> None:
    """Seconds of each epoch: computing, and waiting for data."""
    epochs = np.arange(1, len(history.epochs) + 1)
    seconds = np.array([epoch.seconds for epoch in history.epochs])
    waiting = np.nan_to_num([epoch.waiting for epoch in history.epochs])
    axes.bar(epochs, seconds - waiting, color=TRAIN, width=0.7, label="computing")
    axes.bar(epochs, waiting, bottom=seconds - waiting, color=CHECK, width=0.7, label="waiting for data")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(0, 1.3 * seconds.max(initial=1e-3))
    styled(axes, "epoch", "s")
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=8, labelcolor=INK, frameon=False, ncols=2, loc="upper right")


def bands(axes: Any, steps: Sequence[int], found: Sequence[Distribution], *, small: bool = False) -> None:
    """How a distribution changed: between which values lie all, 86 %, 68 % and 38 % of the elements, and the median.

    Few values far out do not make the rest small: what is further away than 1.5 times the extent of the 86 % is not
    in the picture.

    Args:
        axes: matplotlib's.
        steps: when it was looked at.
        found: what was seen then.
        small: leave the names of the axes out.
    """
    quantiles = np.array([each.quantiles for each in found])  # (steps, 9)
    if np.isnan(quantiles).all():
        axes.text(0.5, 0.5, "no finite values", ha="center", transform=axes.transAxes, color=INK)
        styled(axes)
        return
    for low, high, strength in _BANDS:
        axes.fill_between(steps, quantiles[:, low], quantiles[:, high], color=BAND, alpha=strength, linewidth=0)
    axes.plot(steps, quantiles[:, 4], color=BAND, linewidth=1.2)
    if len(steps) == 1:  # a band of no width
        axes.plot([*steps] * 9, quantiles[0], "_", color=BAND)
    low, high = np.nanmin(quantiles, axis=0), np.nanmax(quantiles, axis=0)
    if (extent := high[7] - low[1]) > 0:
        ends = max(low[0], low[1] - 1.5 * extent), min(high[8], high[7] + 1.5 * extent)
        axes.set_ylim(ends[0] - 0.05 * (ends[1] - ends[0]), ends[1] + 0.05 * (ends[1] - ends[0]))
    styled(axes, "" if small else "step")
    if small:
        axes.tick_params(labelsize=7)
        axes.locator_params(nbins=4)
