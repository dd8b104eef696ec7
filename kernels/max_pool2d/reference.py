"""Max-pooling in NumPy: the forward pass goes over the image once for each tap of the window."""

from __future__ import annotations

import numpy as np

from .._contracts import deliver
from .._windows import Region, taps
from . import Geometry


def max_pool2d_forward(x: np.ndarray, g: Geometry, out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    y = np.empty(g.y_shape, x.dtype) if out is None else out
    y.fill(-np.inf)
    for _, windows, inputs in _taps(g):
        best = y[:, :, *windows]
        np.maximum(best, x[:, :, *inputs], out=best)  # a NaN stays
    # Of equals the first tap has the highest rank; picking by rank needs no branch per element.
    last = g.code_dtype.type(g.R * g.S - 1)
    rank = np.zeros(g.y_shape, g.code_dtype)
    for tap, windows, inputs in _taps(g):
        value = x[:, :, *inputs]
        is_best = (value == y[:, :, *windows]) | np.isnan(value)
        np.maximum(rank[:, :, *windows], is_best * (last - g.code_dtype.type(tap)), out=rank[:, :, *windows])
    return y, last - rank


@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity travel silently
def max_pool2d_backward(grad: np.ndarray, codes: np.ndarray, g: Geometry, out: np.ndarray | None) -> np.ndarray:
    (ph, pw), (bottom, right) = g.padding, _overhang(g)
    padded = np.zeros((g.N, g.C, g.H + ph + bottom, g.W + pw + right), grad.dtype)
    np.add.at(padded.reshape(-1), _positions(codes, g).reshape(-1), grad.reshape(-1))
    return deliver(np.ascontiguousarray(padded[:, :, ph : ph + g.H, pw : pw + g.W]), out)


def max_pool2d_gather(x: np.ndarray, codes: np.ndarray, g: Geometry, out: np.ndarray | None) -> np.ndarray:
    (ph, pw), (bottom, right) = g.padding, _overhang(g)
    padded = np.pad(x, ((0, 0), (0, 0), (ph, bottom), (pw, right)))
    return deliver(padded.reshape(-1)[_positions(codes, g)], out)


def _taps(g: Geometry) -> list[tuple[int, Region, Region]]:
    return list(taps((g.H, g.W), (g.P, g.Q), (g.R, g.S), g.stride, g.padding, g.dilation))


def _overhang(g: Geometry) -> tuple[int, int]:
    """How far the last windows reach beyond the end of the input."""
    (ph, pw), (dh, dw), (sh, sw) = g.padding, g.dilation, g.stride
    below = (g.P - 1) * sh + (g.R - 1) * dh + 1 - ph - g.H
    beside = (g.Q - 1) * sw + (g.S - 1) * dw + 1 - pw - g.W
    return max(below, 0), max(beside, 0)


def _positions(codes: np.ndarray, g: Geometry) -> np.ndarray:
    """The index, in the flattened padded input, of the element that each code names, (N, C, P, Q)."""
    (ph, pw), (bottom, right) = g.padding, _overhang(g)
    height, width = g.H + ph + bottom, g.W + pw + right
    tap = np.arange(g.R)[:, None] * g.dilation[0] * width + np.arange(g.S) * g.dilation[1]  # (R, S)
    window = np.arange(g.P)[:, None] * g.stride[0] * width + np.arange(g.Q) * g.stride[1]  # (P, Q)
    image = np.arange(g.N * g.C).reshape(g.N, g.C, 1, 1) * (height * width)  # (N, C, 1, 1)
    positions = tap.reshape(-1)[codes]
    positions += window
    positions += image
    return positions
