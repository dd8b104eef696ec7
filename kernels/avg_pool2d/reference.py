"""Average-pooling in NumPy: one pass over the image for each tap of the window."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .._contracts import deliver
from .._windows import Region, taps
from . import Geometry


@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity travel silently
def avg_pool2d_forward(x: np.ndarray, g: Geometry, out: np.ndarray | None) -> np.ndarray:
    y = np.zeros(g.y_shape, x.dtype)
    for _, windows, inputs in _taps(g):
        y[:, :, *windows] += x[:, :, *inputs]
    y /= _divisors(g, x.dtype)
    return deliver(y, out)


@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity travel silently
def avg_pool2d_backward(grad: np.ndarray, g: Geometry, out: np.ndarray | None) -> np.ndarray:
    share = grad / _divisors(g, grad.dtype)
    dx = np.zeros(g.x_shape, grad.dtype)
    for _, windows, inputs in _taps(g):
        dx[:, :, *inputs] += share[:, :, *windows]
    return deliver(dx, out)


def _taps(g: Geometry) -> Iterator[tuple[int, Region, Region]]:
    return taps((g.H, g.W), (g.P, g.Q), (g.R, g.S), g.stride, g.padding, (1, 1))


def _divisors(g: Geometry, dtype: np.dtype) -> np.ndarray:
    """What the sum of each window is divided by, (P, Q)."""
    if g.divisor_override is not None:
        return np.full((g.P, g.Q), g.divisor_override, dtype)
    counts = []
    for size, taps_, count, stride, padding in zip(
        (g.H, g.W), (g.R, g.S), (g.P, g.Q), g.stride, g.padding, strict=True
    ):
        margin = padding if g.count_include_pad else 0
        first = np.arange(count) * stride - padding
        counts.append(np.minimum(first + taps_, size + margin) - np.maximum(first, -margin))
    return np.multiply.outer(*counts).astype(dtype)
