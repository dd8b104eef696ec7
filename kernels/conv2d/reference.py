"""Convolution in NumPy: gather the input's windows into columns, then multiply matrices.

The columns (N, G, C/G·R·S, P·Q) hold, for each output position, the C/G·R·S inputs under the filter
(Chellapilla, Puri and Simard, 2006, "im2col").  With them the forward pass and both gradients are
each one matrix product per image and group.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .._contracts import deliver
from . import Geometry


def _tap(offset: int, dilation: int, stride: int, outputs: int) -> slice:
    """The padded input positions that meet filter tap ``offset``, one for each output."""
    first = offset * dilation
    return slice(first, first + stride * (outputs - 1) + 1, stride)


def _columns(x: np.ndarray, g: Geometry) -> np.ndarray:
    (ph, pw), (dh, dw), (sh, sw) = g.padding, g.dilation, g.stride
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    extent = (dh * (g.R - 1) + 1, dw * (g.S - 1) + 1)
    windows = sliding_window_view(padded, extent, axis=(2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]  # (N, C, P, Q, R, S)
    return windows.transpose(0, 1, 4, 5, 2, 3).reshape(g.N, g.G, g.C // g.G * g.R * g.S, g.P * g.Q)


def conv2d_forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, g: Geometry, out: np.ndarray | None
) -> np.ndarray:
    filters = weight.reshape(g.G, g.K // g.G, -1)  # (G, K/G, CRS)
    y = np.matmul(filters, _columns(x, g)).reshape(g.y_shape)  # (N, G, K/G, PQ)
    if bias is not None:
        y += bias[:, None, None]
    return deliver(y, out)


def conv2d_backward_input(grad: np.ndarray, weight: np.ndarray, g: Geometry, out: np.ndarray | None) -> np.ndarray:
    filters = weight.reshape(g.G, g.K // g.G, -1)  # (G, K/G, CRS)
    columns = np.matmul(filters.swapaxes(1, 2), grad.reshape(g.N, g.G, g.K // g.G, g.P * g.Q))  # (N, G, CRS, PQ)
    columns = columns.reshape(g.N, g.C, g.R, g.S, g.P, g.Q)
    (ph, pw), (dh, dw), (sh, sw) = g.padding, g.dilation, g.stride
    padded = np.zeros((g.N, g.C, g.H + 2 * ph, g.W + 2 * pw), grad.dtype)
    for r in range(g.R):
        for s in range(g.S):
            padded[:, :, _tap(r, dh, sh, g.P), _tap(s, dw, sw, g.Q)] += columns[:, :, r, s]
    return deliver(np.ascontiguousarray(padded[:, :, ph : ph + g.H, pw : pw + g.W]), out)


def conv2d_backward_weight(x: np.ndarray, grad: np.ndarray, g: Geometry, out: np.ndarray | None) -> np.ndarray:
    columns = _columns(x, g)  # (N, G, CRS, PQ)
    gradient = grad.reshape(g.N, g.G, g.K // g.G, g.P * g.Q)
    return deliver(np.matmul(gradient, columns.swapaxes(2, 3)).sum(axis=0).reshape(g.weight_shape), out)


def conv2d_backward_bias(grad: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    return deliver(grad.sum(axis=(0, 2, 3)), out)

