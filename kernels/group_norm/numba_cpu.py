"""Compiled group normalisation.

A set, the channels of one group of one example, is one run of numbers.  Parts are ranges of sets; a set of up to a
few hundred thousand numbers stays in cache through its passes, so that x, y and in the backward pass g and dx cross
the memory bus once.  Backward, the sums of g and g xhat over each channel of each example are kept, and make the
means over the set as well as dw and db.

Without positions a set is a row of layer normalisation, and its kernels run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import in_parts, serial, workspace
from .._simd_sums import filled, gradient_sums, input_gradient, normalize, parts_of, statistics
from ..layer_norm.numba_cpu import backward_rows, forward_rows

_FLOAT64 = np.dtype(np.float64)


@in_parts
def _forward(p, slot, parts, x, weight, bias, y, mean, rstd, G, eps):
    sets, W = mean.size, weight.size // G
    L = x.size // (sets * W)
    for i in range(p * sets // parts, (p + 1) * sets // parts):
        mean[i], rstd[i] = statistics(x, i * W * L, 0, 1, W * L, eps)
        first, channel = i % G * W, i * W
        for k in range(W):
            normalize(x, y, (channel + k) * L, L, 0, mean[i], rstd[i], weight[first + k], bias[first + k])


def group_norm_forward(x: Any, groups: int, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    N, C = x.shape[:2]
    if x.size == N * C:
        y, mean, rstd = forward_rows(x, weight, bias, C // groups, groups, eps)
        return y, mean.reshape(N, groups), rstd.reshape(N, groups)
    y, mean, rstd = np.empty_like(x), np.empty((N, groups), x.dtype), np.empty((N, groups), x.dtype)
    weight = filled(C, 1.0, x.dtype) if weight is None else weight
    bias = filled(C, -0.0, x.dtype) if bias is None else bias
    arrays = x.reshape(-1), weight, bias, y.reshape(-1), mean.reshape(-1), rstd.reshape(-1)
    parts = parts_of(N * groups, x.size)
    _forward(parts, parts, *arrays, groups, eps)
    return y, mean, rstd


@in_parts
def _backward(p, slot, parts, g, x, weight, mean, rstd, dx, sums, G):
    sets, W = mean.size, weight.size // G
    L = x.size // (sets * W)
    for i in range(p * sets // parts, (p + 1) * sets // parts):
        first, channel = i % G * W, i * W
        for k in range(W):
            gradient_sums(g, x, (channel + k) * L, 0, 1, L, mean[i], rstd[i], sums, 2 * (channel + k))
        of_h = of_product = 0.0
        for k in range(W):
            of_h += sums[2 * (channel + k)] * weight[first + k]
            of_product += sums[2 * (channel + k) + 1] * weight[first + k]
        of_h, of_product = of_h / (W * L), of_product / (W * L)
        for k in range(W):
            start = (channel + k) * L
            input_gradient(g, x, dx, start, L, 0, mean[i], rstd[i], weight[first + k], of_product, of_h, rstd[i])


@serial
def _over_examples(sums, dweight, dbias):
    C = dweight.size
    total = np.zeros(2 * C)
    for start in range(0, sums.size, 2 * C):
        for i in range(2 * C):
            total[i] += sums[start + i]
    for c in range(C):
        dbias[c], dweight[c] = total[2 * c], total[2 * c + 1]


def group_norm_backward(grad: Any, x: Any, groups: int, weight: Any, mean: Any, rstd: Any) -> tuple[Any, Any, Any]:
    N, C = x.shape[:2]
    if x.size == N * C:
        return backward_rows(grad, x, weight, mean, rstd, C // groups, groups)
    dx, dweight, dbias = np.empty_like(x), np.empty(C, x.dtype), np.empty(C, x.dtype)
    weight = filled(C, 1.0, x.dtype) if weight is None else weight
    sums = workspace("group_norm", 2 * N * C, _FLOAT64)
    arrays = grad.reshape(-1), x.reshape(-1), weight, mean.reshape(-1), rstd.reshape(-1), dx.reshape(-1), sums
    parts = parts_of(N * groups, x.size)
    _backward(parts, parts, *arrays, groups)
    _over_examples(sums, dweight, dbias)
    return dx, dweight, dbias
