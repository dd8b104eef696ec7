"""Compiled batch normalisation.

Parts are ranges of channels.  The values of a channel, N runs of L numbers, stay in the second-level cache through
the passes over them if they take less than a megabyte, so that x, y and in the backward pass g and dx cross the
memory bus once.  Without positions (L = 1) a part is a range of columns, 16 or more side by side.

Few channels with much in each would leave threads idle: they are cut into blocks, and the threads share each pass
over all blocks of all channels.  The sums of blocks, and the order in which they are added, are the same either way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .._jit import parallel, serial
from .._simd_sums import (
    block,
    blocks_of,
    column_gradient_sums,
    column_squares,
    column_sums,
    filled,
    gradient_sums,
    input_gradient,
    normalize,
    parts_of,
    rstd_of,
    squares,
    statistics,
    total,
)

_FEW = 16  # channels
_COLUMNS = 16  # of float32 fill a cache line


def _sizes(x: Any) -> tuple[int, int, int]:
    """C, L, and the number of parts: 0 if few channels have much in each."""
    N, C = x.shape[:2]
    L = x.size // (N * C)
    if L == 1:
        return C, L, parts_of(-(-C // _COLUMNS), x.size)
    parts = parts_of(C, x.size)
    return C, L, 0 if C < _FEW and parts > 1 else parts


@serial
def _share(p, parts, C, L):
    """The first channel of part ``p``, and the one behind its last."""
    unit = _COLUMNS if L == 1 else 1
    units = -(-C // unit)
    return p * units // parts * unit, min((p + 1) * units // parts * unit, C)


@serial
def _block(p, N, C, L):
    """Block ``p`` of those of all channels: its channel, where it begins, how many runs, and how much of each."""
    blocks = blocks_of(N, L)
    run, i, runs, n = block(p % blocks, N, L)
    c = p // blocks
    return c, (run * C + c) * L + i, runs, n


@serial
def _added(sums, first, step, count):
    total = 0.0
    for i in range(count):
        total += sums[first + i * step]
    return total


# ---- forward


@serial
def _forward_columns(x, weight, bias, y, mean, rstd, N, eps, first, last):
    C, columns = mean.size, last - first
    sums = np.empty(columns)
    column_sums(x, first, N, C, columns, sums)
    for i in range(columns):
        mean[first + i] = sums[i] / N
    column_squares(x, first, N, C, columns, mean[first:], sums)
    for i in range(columns):
        rstd[first + i] = rstd_of(sums[i], N, eps, x)
    for n in range(N):
        normalize(x, y, n * C + first, columns, first, mean, rstd, weight, bias)


@serial
def _forward_part(x, weight, bias, y, mean, rstd, N, L, eps, p, parts):
    C = mean.size
    first, last = _share(p, parts, C, L)
    if L == 1:
        _forward_columns(x, weight, bias, y, mean, rstd, N, eps, first, last)
    else:
        for c in range(first, last):
            mean[c], rstd[c] = statistics(x, c * L, C * L, N, L, eps)
            for n in range(N):
                normalize(x, y, (n * C + c) * L, L, 0, mean[c], rstd[c], weight[c], bias[c])


@parallel
def _forward(x, weight, bias, y, mean, rstd, N, L, eps, parts):
    for p in prange(parts):
        _forward_part(x, weight, bias, y, mean, rstd, N, L, eps, p, parts)


@parallel
def _forward_few(x, weight, bias, y, mean, rstd, N, L, eps):
    C, blocks = mean.size, blocks_of(N, L)
    sums = np.empty(C * blocks)
    for p in prange(C * blocks):
        c, start, runs, n = _block(p, N, C, L)
        sums[p] = total(x, start, C * L, runs, n)
    for c in range(C):
        mean[c] = _added(sums, c * blocks, 1, blocks) / (N * L)
    for p in prange(C * blocks):
        c, start, runs, n = _block(p, N, C, L)
        sums[p] = squares(x, start, C * L, runs, n, mean[c])
    for c in range(C):
        rstd[c] = rstd_of(_added(sums, c * blocks, 1, blocks), N * L, eps, x)
    for p in prange(C * blocks):
        c, start, runs, n = _block(p, N, C, L)
        for r in range(runs):
            normalize(x, y, start + r * C * L, n, 0, mean[c], rstd[c], weight[c], bias[c])


def batch_norm_forward(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    y, mean, rstd = np.empty_like(x), np.empty(x.shape[1], x.dtype), np.empty(x.shape[1], x.dtype)
    if x.size:
        C, L, parts = _sizes(x)
        weight = filled(C, 1.0, x.dtype) if weight is None else weight
        bias = filled(C, -0.0, x.dtype) if bias is None else bias
        arguments = x.reshape(-1), weight, bias, y.reshape(-1), mean, rstd, x.shape[0], L, eps
        if parts == 0:
            _forward_few(*arguments)
        elif parts == 1:
            _forward_part(*arguments, 0, 1)
        else:
            _forward(*arguments, parts)
    return y, mean, rstd


# ---- inference


@serial
def _inference_part(x, mean, var, weight, bias, y, N, L, eps, p, parts):
    C = mean.size
    rstd = np.empty_like(var)
    for c in range(C):
        rstd[c] = rstd_of(var[c], 1, eps, x)
    if L == 1:
        for n in range(p * N // parts, (p + 1) * N // parts):
            normalize(x, y, n * C, C, 0, mean, rstd, weight, bias)
    else:
        for r in range(p * N * C // parts, (p + 1) * N * C // parts):
            c = r % C
            normalize(x, y, r * L, L, 0, mean[c], rstd[c], weight[c], bias[c])


@parallel
def _inference(x, mean, var, weight, bias, y, N, L, eps, parts):
    for p in prange(parts):
        _inference_part(x, mean, var, weight, bias, y, N, L, eps, p, parts)


def batch_norm_inference(x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Any:
    y = np.empty_like(x)
    if x.size:
        N, C = x.shape[:2]
        L = x.size // (N * C)
        weight = filled(C, 1.0, x.dtype) if weight is None else weight
        bias = filled(C, -0.0, x.dtype) if bias is None else bias
        arguments = x.reshape(-1), mean, var, weight, bias, y.reshape(-1), N, L, eps
        parts = parts_of(N if L == 1 else N * C, x.size)
        if parts == 1:
            _inference_part(*arguments, 0, 1)
        else:
            _inference(*arguments, parts)
    return y


# ---- backward


@serial
def _backward_columns(g, x, weight, mean, rstd, dx, dweight, dbias, N, first, last):
    C, columns = mean.size, last - first
    of_g, of_product = np.empty(columns), np.empty(columns)
    per_g, per_product, scale = np.empty_like(mean), np.empty_like(mean), np.empty_like(mean)
    column_gradient_sums(g, x, first, N, C, columns, mean[first:], rstd[first:], of_g, of_product)
    for i in range(columns):
        c = first + i
        dbias[c], dweight[c] = of_g[i], of_product[i]
        per_g[c], per_product[c], scale[c] = of_g[i] / N, of_product[i] / N, rstd[c] * weight[c]
    for n in range(N):
        input_gradient(g, x, dx, n * C + first, columns, first, mean, rstd, 1.0, per_product, per_g, scale)


@serial
def _backward_part(g, x, weight, mean, rstd, dx, dweight, dbias, N, L, p, parts):
    C, M = mean.size, N * L
    first, last = _share(p, parts, C, L)
    if L == 1:
        _backward_columns(g, x, weight, mean, rstd, dx, dweight, dbias, N, first, last)
    else:
        sums = np.empty(2)
        for c in range(first, last):
            gradient_sums(g, x, c * L, C * L, N, L, mean[c], rstd[c], sums, 0)
            dbias[c], dweight[c] = sums
            scale = rstd[c] * weight[c]
            for n in range(N):
                at = (n * C + c) * L
                input_gradient(g, x, dx, at, L, 0, mean[c], rstd[c], 1.0, sums[1] / M, sums[0] / M, scale)


@parallel
def _backward(g, x, weight, mean, rstd, dx, dweight, dbias, N, L, parts):
    for p in prange(parts):
        _backward_part(g, x, weight, mean, rstd, dx, dweight, dbias, N, L, p, parts)


@parallel
def _backward_few(g, x, weight, mean, rstd, dx, dweight, dbias, N, L):
    C, M, blocks = mean.size, N * L, blocks_of(N, L)
    sums, of_g, of_product = np.empty(2 * C * blocks), np.empty(C), np.empty(C)
    for p in prange(C * blocks):
        c, start, runs, n = _block(p, N, C, L)
        gradient_sums(g, x, start, C * L, runs, n, mean[c], rstd[c], sums, 2 * p)
    for c in range(C):
        of_g[c] = _added(sums, 2 * c * blocks, 2, blocks)
        of_product[c] = _added(sums, 2 * c * blocks + 1, 2, blocks)
        dbias[c], dweight[c] = of_g[c], of_product[c]
    for p in prange(C * blocks):
        c, start, runs, n = _block(p, N, C, L)
        scale = rstd[c] * weight[c]
        for r in range(runs):
            at = start + r * C * L
            input_gradient(g, x, dx, at, n, 0, mean[c], rstd[c], 1.0, of_product[c] / M, of_g[c] / M, scale)


def batch_norm_backward(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any) -> tuple[Any, Any, Any]:
    dx, dweight, dbias = np.empty_like(x), np.zeros(x.shape[1], x.dtype), np.zeros(x.shape[1], x.dtype)
    if x.size:
        C, L, parts = _sizes(x)
        weight = filled(C, 1.0, x.dtype) if weight is None else weight
        arrays = grad.reshape(-1), x.reshape(-1), weight, mean, rstd, dx.reshape(-1), dweight, dbias
        if parts == 0:
            _backward_few(*arrays, x.shape[0], L)
        elif parts == 1:
            _backward_part(*arrays, x.shape[0], L, 0, 1)
        else:
            _backward(*arrays, x.shape[0], L, parts)
    return dx, dweight, dbias
