"""What many numbers look like in few: quantiles, a histogram, mean, spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np

from ...kernels._devices import device_of
from ...kernels._errors import CheckpointError

#: The shares below which lie the quantiles of a :class:`Distribution`: the least, seven between, the greatest.
SHARES = (0.0, 0.07, 0.16, 0.31, 0.5, 0.69, 0.84, 0.93, 1.0)
#: Bins of its histogram, all as wide, from the least to the greatest.
BINS = 40
#: At most about so many elements are looked at.
LIMIT = 1 << 13
_NUMBERS = ("count", "seen", "not_finite", "zeros", "mean", "std")


@dataclass(frozen=True)
class Distribution:
    """What the elements of some arrays look like.

    All but ``count`` is of the elements that were looked at; quantiles, histogram, mean and spread are of those that
    are finite, NaN if there is none.

    Attributes:
        count: elements that there are.
        seen: those that were looked at.
        not_finite: of these NaN or infinite.
        zeros: of these exactly 0.
        mean, std: their mean, and the standard deviation from it.
        quantiles: (9,) float64, see :data:`SHARES`.
        histogram: (40,) int64, how many lie in each bin.
    """

    count: int
    seen: int
    not_finite: int
    zeros: int
    mean: float
    std: float
    quantiles: np.ndarray
    histogram: np.ndarray

    @property
    def edges(self) -> np.ndarray:
        """Where the bins begin and end, (41,)."""
        return _edges(float(self.quantiles[0]), float(self.quantiles[-1]))


def distribution(*arrays: Any) -> Distribution:
    """The distribution of the elements of all ``arrays`` together.

    Of more than 8,192 elements it looks at evenly spaced ones, always the same.

    Args:
        arrays: of floating-point numbers, of any device and shape.
    """
    count = sum(prod(array.shape) for array in arrays)
    parts = [_sample(array, -(-count // LIMIT)) for array in arrays if prod(array.shape)]
    values = np.concatenate(parts) if parts else np.empty(0, np.float32)
    finite = values[np.isfinite(values)]
    bad, zeros = len(values) - len(finite), int((finite == 0).sum())
    if not len(finite):
        nowhere = np.full(len(SHARES), np.nan)
        return Distribution(count, len(values), bad, 0, np.nan, np.nan, nowhere, np.zeros(BINS, np.int64))
    ordered = np.sort(finite).astype(np.float64)
    last = len(ordered) - 1
    quantiles = np.interp(np.multiply(SHARES, last), np.arange(len(ordered)), ordered)
    inner = np.searchsorted(ordered, _edges(ordered[0], ordered[-1])[1:-1])
    histogram = np.diff(inner, prepend=0, append=len(ordered))
    mean, std = float(ordered.mean()), float(ordered.std())
    return Distribution(count, len(values), bad, zeros, mean, std, quantiles, histogram)


def _edges(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, BINS + 1)


def _sample(array: Any, step: int) -> np.ndarray:
    """About every ``step``-th element of an array, on the host, (n,) float32 or float64.

    The step has no factor in common with any dimension: else it would meet the same columns over and over.
    """
    while step > 1 and any(gcd(step, size) > 1 for size in array.shape):
        step += 1
    device = device_of(array)
    flat = np.asarray(device.to_host(device.array_module.ascontiguousarray(array.reshape(-1)[::step])))
    return flat.astype(np.promote_types(flat.dtype, np.float32), copy=False)


def table(distributions: Mapping[str, Distribution]) -> dict[str, Any]:
    """Distributions by name as a few arrays, to be saved."""
    rows = list(distributions.values())
    return {
        "names": list(distributions),
        "numbers": np.array([[getattr(row, name) for name in _NUMBERS] for row in rows], np.float64),
        "quantiles": np.array([row.quantiles for row in rows], np.float64),
        "histograms": np.array([row.histogram for row in rows], np.int64),
    }


def from_table(saved: Mapping[str, Any]) -> dict[str, Distribution]:
    """What :func:`table` was made of.

    Raises:
        CheckpointError: it is something else.
    """
    try:
        names, numbers = list(saved["names"]), np.asarray(saved["numbers"])
        quantiles, histograms = np.asarray(saved["quantiles"]), np.asarray(saved["histograms"])
        shapes = [(len(names), len(row)) for row in (_NUMBERS, SHARES)] + [(len(names), BINS)]
        if names and [numbers.shape, quantiles.shape, histograms.shape] != shapes:
            raise ValueError(f"the arrays must be of shapes {shapes}")
        found = {}
        for i, (name, row) in enumerate(zip(names, numbers.tolist(), strict=True)):
            count, seen, bad, zeros = map(int, row[:4])
            found[str(name)] = Distribution(count, seen, bad, zeros, row[4], row[5], quantiles[i], histograms[i])
        return found
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"not a table of distributions: {error!r}") from None
