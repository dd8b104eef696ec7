"""Compiled layer normalisation.

Parts are ranges of rows.  A row of up to a few hundred thousand numbers stays in cache through its passes (sum;
squares about the mean; normalise), so that x, y and in the backward pass g and dx cross the memory bus once.
Backward, each part adds up dw and db of its rows, in an array of its own; those are added in order at the end.

Rows may take turns with ``G`` pieces of the weights: group normalisation without positions does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._jit import in_parts, serial
from .._simd_sums import filled, input_gradient, normalize, parts_of, row_gradient_sums, rstd_of, squares, total

_AT_ONCE = 4096  # numbers of short rows, a pass over all of them after the other: no row waits for its own sums
_ROWS = 8  # of a part, so that its dw and db, written and read again, cost little beside its rows


@in_parts
def _forward(p, slot, parts, x, weight, bias, y, mean, rstd, G, eps):
    D, R = weight.size // G, mean.size
    last, step = (p + 1) * R // parts, max(_AT_ONCE // D, 1)
    for first in range(p * R // parts, last, step):
        rows = range(first, min(first + step, last))
        for r in rows:
            mean[r] = total(x, r * D, 0, 1, D) / D
        for r in rows:
            rstd[r] = rstd_of(squares(x, r * D, 0, 1, D, mean[r]), D, eps, x)
        for r in rows:
            normalize(x, y, r * D, D, r % G * D, mean[r], rstd[r], weight, bias)


@in_parts
def _backward(p, slot, parts, g, x, weight, mean, rstd, dx, gradients, G):
    C, R = weight.size, mean.size
    D = C // G
    gradients[2 * C * p : 2 * C * (p + 1)] = 0
    last, step = (p + 1) * R // parts, max(_AT_ONCE // D, 1)
    sums = np.empty(2 * step)
    for first in range(p * R // parts, last, step):
        rows = range(first, min(first + step, last))
        for r in rows:
            c = r % G * D
            at = 2 * C * p + c
            k = 2 * (r - first)
            row_gradient_sums(g, x, r * D, D, c, mean[r], rstd[r], weight, gradients, at, at + C, sums, k)
        for r in rows:
            of_h, of_product = sums[2 * (r - first)] / D, sums[2 * (r - first) + 1] / D
            input_gradient(g, x, dx, r * D, D, r % G * D, mean[r], rstd[r], weight, of_product, of_h, rstd[r])


@serial
def _add_parts(gradients, n):
    """The first ``n`` numbers become the sum of all pieces of ``n``."""
    for start in range(n, gradients.size, n):
        for i in range(n):
            gradients[i] += gradients[start + i]


def forward_rows(x: Any, weight: Any, bias: Any, row: int, G: int, eps: float) -> tuple[Any, Any, Any]:
    """y like x, mean and rstd (rows,): rows of ``row`` numbers, of which r has piece r mod G of the weights."""
    y, rows = np.empty_like(x), x.size // row
    mean, rstd = np.empty(rows, x.dtype), np.empty(rows, x.dtype)
    weight = filled(G * row, 1.0, x.dtype) if weight is None else weight.reshape(-1)
    bias = filled(G * row, -0.0, x.dtype) if bias is None else bias.reshape(-1)
    arrays = x.reshape(-1), weight, bias, y.reshape(-1), mean, rstd
    parts = parts_of(rows, x.size)
    _forward(parts, parts, *arrays, G, eps)
    return y, mean, rstd


def backward_rows(g: Any, x: Any, weight: Any, mean: Any, rstd: Any, row: int, G: int) -> tuple[Any, Any, Any]:
    """dx like x, dweight and dbias (G row,)."""
    dx, rows, C = np.empty_like(x), x.size // row, G * row
    weight = filled(C, 1.0, x.dtype) if weight is None else weight.reshape(-1)
    parts = parts_of(-(-rows // (_ROWS * G)), x.size)
    gradients = np.empty(2 * C * parts, x.dtype)
    arrays = g.reshape(-1), x.reshape(-1), weight, mean.reshape(-1), rstd.reshape(-1), dx.reshape(-1), gradients
    _backward(parts, parts, *arrays, G)
    if parts > 1:
        _add_parts(gradients, 2 * C)
    return dx, gradients[:C].copy(), gradients[C : 2 * C].copy()


def layer_norm_forward(x: Any, weight: Any, bias: Any, normalized_ndim: int, eps: float) -> tuple[Any, Any, Any]:
    rows, row = x.shape[: x.ndim - normalized_ndim], x.shape[x.ndim - normalized_ndim :]
    y, mean, rstd = forward_rows(x, weight, bias, math.prod(row), 1, eps)
    return y, mean.reshape(rows), rstd.reshape(rows)


def layer_norm_backward(
    grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, normalized_ndim: int
) -> tuple[Any, Any, Any]:
    row = x.shape[x.ndim - normalized_ndim :]
    dx, dweight, dbias = backward_rows(grad, x, weight, mean, rstd, math.prod(row), 1)
    return dx, dweight.reshape(row), dbias.reshape(row)
