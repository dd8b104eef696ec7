"""Compiled matrix products: tiles of sums in registers over panels in cache.

Two ways, chosen by shape:

``panels``  op(a) is copied into panels (K, R) and op(b) into panels (K, V lanes), zeros where they end; a tile of
            R rows and V vectors of y then reads both from front to back.  Parts are blocks of y; within one,
            blocks of _DEPTH steps of K keep the panel of b in the first-level cache, and y takes a block's sums.
            Where the rows of b are used few times, b is read in place.
``dot``     of a bᵀ with few columns: rows of both lie along the sum already, so tiles of 5 x 5 dot products
            need no copies.

Each sum over K runs in one order whatever the number of threads: the lanes of ``dot`` side by side, everything
else from first to last.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from .._contracts import deliver
from .._jit import parallel, workspace
from .._simd import Pointer, Stage, Value, simd, vector_bytes
from .._simd_tile import Tile, pack_columns, pack_rows, registers_fit
from ..activation import activation_forward
from . import Geometry, geometry

_DEPTH = 256  # steps of K: a panel of b, of 128 bytes a step, is then 32 KB
_TILES = ((14, 2), (6, 4), (6, 2))


@simd
def _tile(
    s: Stage,
    a: Pointer,
    a_at: Value,
    b: Pointer,
    b_at: Value,
    b_pitch: Value,
    steps: Value,
    y: Pointer,
    y_at: Value,
    y_pitch: Value,
    rows: Value,
    columns: Value,
    bias: Pointer,
    bias_at: Value,
    k: Value,
    relu: Value,
    R: int,
    V: int,
    WHOLE: bool,
) -> None:
    """y[:rows, :columns] += a b, of a panel of a and rows of b; from nothing, or the bias, where k is 0.

    A negative ``bias_at`` is none.  ``relu`` is 1 for max(y, 0) at the end.
    """
    tile, lanes = Tile(s, R, V, y), s.lanes(y)
    a, b, y = a + a_at, b + b_at, y + y_at
    masks = [None if WHOLE else s.first(columns - v * lanes, lanes) for v in range(V)]
    with s.range(0, steps) as j:
        tile.outer((a + j * R).__getitem__, [b.load(j * b_pitch + v * lanes, lanes, masks[v]) for v in range(V)])
    initial = [s.variable(s.zero(y, lanes)) for _ in range(V)]
    with s.when(bias_at >= 0):
        for v in range(V):
            initial[v].value = bias.load(bias_at + v * lanes, lanes, masks[v])
    for i in range(R):
        with s.when(rows > i):
            for v in range(V):
                before = s.variable(initial[v].value)
                with s.when(k > 0):
                    before.value = y.load(y_pitch * i + v * lanes, lanes, masks[v])
                result = s.variable(tile.sums[i][v].value + before.value)
                with s.when(relu.equals(1)):
                    value = result.value
                    result.value = (value < 0.0).where(0.0, value)  # a NaN stays
                y.store(y_pitch * i + v * lanes, result.value, masks[v])


class _Sizes(NamedTuple):
    """What a product's kernel is told: in elements, panels and parts."""

    R: int
    V: int
    width: int
    blocks_m: int
    blocks_n: int
    panels_m: int
    panels_n: int
    pack_b: bool


@cache
def _sizes(M: int, N: int, K: int, batch: int, itemsize: int, transpose_b: bool) -> _Sizes:
    lanes = vector_bytes() // itemsize
    fitting = [(R, V) for R, V in _TILES if registers_fit(R, V)]

    def cost(tile: tuple[int, int]) -> float:
        R, V = tile
        rows, columns = math.ceil(M / R) * R, math.ceil(N / (V * lanes)) * V
        return rows * columns * (1 + (R + V) / (R * V))

    R, V = min(fitting, key=cost)
    width = V * lanes
    # Blocks of y of about 8 x 8 panels; smaller ones where that leaves few parts.
    rows_of_panels, columns_of_panels = math.ceil(M / R), math.ceil(N / width)
    of_m, of_n = min(8, rows_of_panels), min(8, columns_of_panels)
    work = 2.0 * M * N * K * batch

    def parts() -> int:
        return batch * math.ceil(rows_of_panels / of_m) * math.ceil(columns_of_panels / of_n)

    while parts() < 16 and work / parts() > 1e6 and (of_m > 1 or of_n > 1):
        if of_m == 1 or (of_n > 1 and of_n * width >= of_m * R):
            of_n = math.ceil(of_n / 2)
        else:
            of_m = math.ceil(of_m / 2)
    pack_b = transpose_b or (K * N * itemsize > 2**20 and rows_of_panels > 4)
    return _Sizes(
        R, V, width, math.ceil(rows_of_panels / of_m), math.ceil(columns_of_panels / of_n), of_m, of_n, pack_b
    )


@cache
def _pack(width: int) -> Any:
    @parallel
    def pack(a, matrices, length, steps, transposed, panels):
        """Panels (steps, width) of each matrix: of (steps, length), or of (length, steps) where transposed."""
        count = (length + width - 1) // width
        for part in prange(matrices * count):
            matrix, i, to = part // count, part % count * width, part * steps * width
            if transposed:
                pack_columns(a, (matrix * length + i) * steps, steps, length - i, steps, panels, to, width)
            else:
                pack_rows(a, matrix * length * steps + i, length, length - i, steps, panels, to, width)

    return pack


@cache
def _multiply(R: int, V: int, lanes: int) -> Any:
    width = V * lanes

    @parallel
    def multiply(
        a, b, bias, y, M, N, K, of_a, of_b, blocks_m, blocks_n, panels_m, panels_n, pitch, panel, matrix, relu
    ):
        """y = a b of panels of a; row k of panel i of matrix j of b begins at j matrix + i panel + k pitch."""
        rows, columns = (M + R - 1) // R, (N + width - 1) // width
        for part in prange((of_a.size - 1) * blocks_m * blocks_n):
            product, block_m, block_n = part // (blocks_m * blocks_n), part // blocks_n % blocks_m, part % blocks_n
            last_row, last_column = min((block_m + 1) * panels_m, rows), min((block_n + 1) * panels_n, columns)
            for k in range(0, max(K, 1), _DEPTH):
                steps, last = min(_DEPTH, K - k), relu if k + _DEPTH >= K else 0
                for column in range(block_n * panels_n, last_column):
                    n = column * width
                    b_at = of_b[product] * matrix + column * panel + k * pitch
                    bias_at = n if bias.size and k == 0 else -1
                    for row in range(block_m * panels_m, last_row):
                        a_at = ((of_a[product] * rows + row) * K + k) * R
                        y_at = (product * M + row * R) * N + n
                        if n + width <= N:
                            _tile(a, a_at, b, b_at, pitch, steps, y, y_at, N, M - row * R, width, bias, bias_at, k,
                                  last, R, V, True)  # fmt: skip
                        else:
                            _tile(a, a_at, b, b_at, pitch, steps, y, y_at, N, M - row * R, N - n, bias, bias_at, k,
                                  last, R, V, False)  # fmt: skip

    return multiply


@cache
def _matrices(batch: tuple[int, ...], own: tuple[int, ...]) -> np.ndarray:
    """For each product of the batch the number of its matrix among those of one factor; last, how many it has."""
    count = math.prod(own)
    numbers = np.broadcast_to(np.arange(count).reshape(own), batch).reshape(-1)
    return np.append(numbers, count)


def gemm(
    a: np.ndarray,
    b: np.ndarray,
    bias: np.ndarray | None,
    transpose_a: bool,
    transpose_b: bool,
    activation: str | None,
    out: np.ndarray | None,
) -> np.ndarray:
    g = geometry(a.shape, b.shape, transpose_a, transpose_b)
    y = np.empty(g.y_shape, a.dtype) if out is None else out
    if y.size:
        _product(a, b, bias, transpose_a, transpose_b, activation == "relu", g, y)
    if activation not in (None, "relu"):
        y = deliver(activation_forward(y, activation), out)
    return y


def _product(
    a: np.ndarray,
    b: np.ndarray,
    bias: np.ndarray | None,
    transpose_a: bool,
    transpose_b: bool,
    relu: bool,
    g: Geometry,
    y: np.ndarray,
) -> None:
    M, N, K = g.M, g.N, g.K
    of_a, of_b = _matrices(g.batch, a.shape[:-2]), _matrices(g.batch, b.shape[:-2])
    z = _sizes(M, N, K, of_a.size - 1, a.itemsize, transpose_b)
    rows, columns = math.ceil(M / z.R), math.ceil(N / z.width)
    panels_a = workspace("gemm a", of_a[-1] * rows * K * z.R, a.dtype)
    _pack(z.R)(a.reshape(-1), of_a[-1], M, K, not transpose_a, panels_a)
    if z.pack_b:
        panels_b = workspace("gemm b", of_b[-1] * columns * K * z.width, b.dtype)
        _pack(z.width)(b.reshape(-1), of_b[-1], N, K, transpose_b, panels_b)
        steps = z.width, K * z.width, columns * K * z.width
    else:
        panels_b, steps = b.reshape(-1), (N, z.width, K * N)
    _multiply(z.R, z.V, z.width // z.V)(
        panels_a, panels_b, panels_a[:0] if bias is None else bias, y.reshape(-1), M, N, K, of_a, of_b,
        z.blocks_m, z.blocks_n, z.panels_m, z.panels_n, *steps, int(relu),
    )  # fmt: skip
