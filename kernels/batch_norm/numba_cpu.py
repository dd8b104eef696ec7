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

from .._jit import in_parts, serial
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


@in_parts
def _forward(p, slot, parts, x, weight, bias, y, mean, rstd, N, L, eps):
    C = mean.size
    first, last = _share(p, parts, C, L)
    if L == 1:
        _forward_columns(x, weight, bias, y, mean, rstd, N, eps, first, last)
    else:
        for c in range(first, last):
            mean[c], rstd[c] = statistics(x, c * L, C * L, N, L, eps)
            for n in range(N):
                normalize(x, y, (n * C + c) * L, L, 0, mean[c], rstd[c], weight[c], bias[c])


# Of few channels, the passes over the blocks, and what lies between them.


@in_parts
def _block_total(p, slot, x, sums, N, C, L):
    _, start, runs, n = _block(p, N, C, L)
    sums[p] = total(x, start, C * L, runs, n)


@serial
def _means(sums, mean, M):
    blocks = sums.size // mean.size
    for c in range(mean.size):
        mean[c] = _added(sums, c * blocks, 1, blocks) / M


@in_parts
def _block_squares(p, slot, x, mean, sums, N, C, L):
    c, start, runs, n = _block(p, N, C, L)
    sums[p] = squares(x, start, C * L, runs, n, mean[c])


@serial
def _rstds(sums, rstd, M, eps):
    blocks = sums.size // rstd.size
    for c in range(rstd.size):
        rstd[c] = rstd_of(_added(sums, c * blocks, 1, blocks), M, eps, rstd)


@in_parts
def _block_normalized(p, slot, x, weight, bias, y, mean, rstd, N, C, L):
    c, start, runs, n = _block(p, N, C, L)
    for r in range(runs):
        normalize(x, y, start + r * C * L, n, 0, mean[c], rstd[c], weight[c], bias[c])


def _forward_few(x, weight, bias, y, mean, rstd, N, L, eps):
    C = mean.size
    parts = C * blocks_of(N, L)
    sums = np.empty(parts)
    _block_total(parts, x, sums, N, C, L)
    _means(sums, mean, N * L)
    _block_squares(parts, x, mean, sums, N, C, L)
    _rstds(sums, rstd, N * L, eps)
    _block_normalized(parts, x, weight, bias, y, mean, rstd, N, C, L)


def batch_norm_forward(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    y, mean, rstd = np.empty_like(x), np.empty(x.shape[1], x.dtype), np.empty(x.shape[1], x.dtype)
    if x.size:
        C, L, parts = _sizes(x)
        weight = filled(C, 1.0, x.dtype) if weight is None else weight
        bias = filled(C, -0.0, x.dtype) if bias is None else bias
        arguments = x.reshape(-1), weight, bias, y.reshape(-1), mean, rstd, x.shape[0], L, eps
        if parts == 0:
            _forward_few(*arguments)
        else:
            _forward(parts, parts, *arguments)
    return y, mean, rstd


# ---- inference


@in_parts
def _inference(p, slot, parts, x, mean, var, weight, bias, y, N, L, eps):
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


def batch_norm_inference(x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Any:
    y = np.empty_like(x)
    if x.size:
        N, C = x.shape[:2]
        L = x.size // (N * C)
        weight = filled(C, 1.0, x.dtype) if weight is None else weight
        bias = filled(C, -0.0, x.dtype) if bias is None else bias
        arguments = x.reshape(-1), mean, var, weight, bias, y.reshape(-1), N, L, eps
        parts = parts_of(N if L == 1 else N * C, x.size)
        _inference(parts, parts, *arguments)
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


@in_parts
def _backward(p, slot, parts, g, x, weight, mean, rstd, dx, dweight, dbias, N, L):
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


@in_parts
def _block_gradient_sums(p, slot, g, x, mean, rstd, sums, N, C, L):
    c, start, runs, n = _block(p, N, C, L)
    gradient_sums(g, x, start, C * L, runs, n, mean[c], rstd[c], sums, 2 * p)


@serial
def _channel_gradients(sums, of_g, of_product):
    C = of_g.size
    blocks = sums.size // (2 * C)
    for c in range(C):
        of_g[c] = _added(sums, 2 * c * blocks, 2, blocks)
        of_product[c] = _added(sums, 2 * c * blocks + 1, 2, blocks)


@in_parts
def _block_input_gradient(p, slot, g, x, weight, mean, rstd, dx, of_g, of_product, N, C, L):
    c, start, runs, n = _block(p, N, C, L)
    M, scale = N * L, rstd[c] * weight[c]
    for r in range(runs):
        at = start + r * C * L
        input_gradient(g, x, dx, at, n, 0, mean[c], rstd[c], 1.0, of_product[c] / M, of_g[c] / M, scale)


def _backward_few(g, x, weight, mean, rstd, dx, dweight, dbias, N, L):
    C = mean.size
    parts = C * blocks_of(N, L)
    sums, of_g, of_product = np.empty(2 * parts), np.empty(C), np.empty(C)
    _block_gradient_sums(parts, g, x, mean, rstd, sums, N, C, L)
    _channel_gradients(sums, of_g, of_product)
    dbias[:], dweight[:] = of_g, of_product
    _block_input_gradient(parts, g, x, weight, mean, rstd, dx, of_g, of_product, N, C, L)


def batch_norm_backward(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any) -> tuple[Any, Any, Any]:
    dx, dweight, dbias = np.empty_like(x), np.zeros(x.shape[1], x.dtype), np.zeros(x.shape[1], x.dtype)
    if x.size:
        C, L, parts = _sizes(x)
        weight = filled(C, 1.0, x.dtype) if weight is None else weight
        arrays = grad.reshape(-1), x.reshape(-1), weight, mean, rstd, dx.reshape(-1), dweight, dbias
        if parts == 0:
            _backward_few(*arrays, x.shape[0], L)
        else:
            _backward(parts, parts, *arrays, x.shape[0], L)
    return dx, dweight, dbias
