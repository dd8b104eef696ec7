"""Compiled matrix products: tiles of sums in registers over panels in cache.

Two ways, chosen by shape:

``panels``  op(a) is copied into panels (K, R), and op(b) into panels (K, V lanes) unless its rows are used once or
            twice and read in place; what a panel lacks at the edges is zero.  A tile of R rows and V vectors of y
            then reads both from front to back.  Parts are blocks of y; within one, blocks of _DEPTH steps of K keep a
            panel of b in the first-level cache, and the tiles of y take one block's sums after the other's.
``dots``    Few rows or columns of y, where rows of a and bᵀ lie along the sum already: tiles of dot products need no
            copies.  A small b that lies the other way is transposed for it.

Each sum over K runs in one order whatever the number of threads: first to last in ``panels``, lane by lane in ``dots``.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from .._contracts import deliver
from .._jit import in_parts, workspace
from .._simd import Pointer, Stage, Value, simd, vector_bytes
from .._simd_tile import Tile, pack_columns, pack_rows, registers_fit, totals
from ..activation import activation_forward
from ..activation.numba_cpu import BACKWARD
from . import geometry

_DEPTH = 256  # steps of K: a panel of b, of 128 bytes a step, is then 32 KB
#: Tiles, rows and vectors, with the time of a multiplication relative to the processor's best.
_TILES = {(14, 2): 1.0, (10, 2): 1.04, (6, 4): 1.08} if registers_fit(14, 2) else {(6, 2): 1.0}


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


@simd
def _dots(
    s: Stage, a: Pointer, a_at: Value, rows: Value, b: Pointer, b_at: Value, pitch: Value, columns: Value, K: Value,
    y: Pointer, y_at: Value, N: Value, bias: Pointer, bias_at: Value, relu: Value, R: int, V: int,
) -> None:  # fmt: skip
    """y[:rows, :columns] = a bᵀ + bias of rows along the sum; rows beyond the last repeat it."""
    tile, lanes = Tile(s, R, V, y), s.lanes(y)
    last_a, last_b = rows - 1, columns - 1
    of_a = [a_at + (last_a < i).where(last_a, s.integer(i)) * K for i in range(R)]
    of_b = [b_at + (last_b < i).where(last_b, s.integer(i)) * pitch for i in range(V)]

    def add(k: Value, count: Value | None) -> None:
        here = None if count is None else s.first(count, lanes)
        tile.dot([a.load(at + k, lanes, here) for at in of_a], [b.load(at + k, lanes, here) for at in of_b])

    s.each(s.integer(0), K, lanes, add)
    for pieces in _pieces(R, V, lanes):
        result = s.variable(totals([tile.sums[i][j + n].value for _, i, j, count in pieces for n in range(count)]))
        masks = [
            (s.counting(lanes) >= lane) & s.first(lane + count, lanes) & s.first(columns + (lane - j), lanes)
            for lane, _, j, count in pieces
        ]
        with s.when(bias_at >= 0):
            for (lane, _, j, _), mask in zip(pieces, masks, strict=True):
                result.value = result.value + bias.load(bias_at + (j - lane), lanes, mask)
        with s.when(relu.equals(1)):
            result.value = (result.value < 0.0).where(0.0, result.value)  # a NaN stays
        for (lane, i, j, _), mask in zip(pieces, masks, strict=True):
            with s.when(last_a >= i):
                y.store(y_at + N * i + (j - lane), result.value, mask)


def _pieces(R: int, V: int, lanes: int) -> list[list[tuple[int, int, int, int]]]:
    """How R rows of V numbers fit into vectors: for each vector (lane, row, first column, how many columns)."""
    vectors: list[list[tuple[int, int, int, int]]] = []
    used = lanes
    for i in range(R):
        for j in range(0, V, lanes):
            count = min(lanes, V - j)
            if used + count > lanes:
                vectors.append([])
                used = 0
            vectors[-1].append((used, i, j, count))
            used += count
    return vectors


# ---- plans: what depends on the shapes alone

#: Up to how many rows or columns ``dots`` is quicker.
_FEW = 24
#: Multiplications that take less time than a launch.
_LITTLE_WORK = 1 << 18
#: Elements of h that one thread has done before another would have begun, and the columns of a part.
_LITTLE, _COLUMNS = 1 << 16, 64
_DOTS = (5, 5) if registers_fit(5, 5) else (3, 3)


class Plan(NamedTuple):
    """How a product of given shapes is computed."""

    y_shape: tuple[int, ...]
    kernel: Any
    parts: int
    arguments: tuple[Any, ...]
    pack: Any = None
    packing: tuple[Any, ...] = ()  # parts, arguments
    copies_a: int = 0  # elements; none: a is read in place
    copies_b: int = 0


def _blocks(M: int, N: int, work: float, batch: int) -> tuple[int, int]:
    """Of M x N panels of y how many a part owns: 8 x 8, or fewer where that leaves few parts and they are worth it."""
    m, n = max(min(8, M), 1), max(min(8, N), 1)
    while (parts := batch * math.ceil(M / m) * math.ceil(N / n)) < 16 and work > _LITTLE_WORK * parts and m * n > 1:
        if m >= n:
            m = math.ceil(m / 2)
        else:
            n = math.ceil(n / 2)
    return m, n


@lru_cache(maxsize=1024)
def _plan(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...], transpose_a: bool, transpose_b: bool, itemsize: int
) -> Plan:
    g = geometry(a_shape, b_shape, transpose_a, transpose_b)
    M, N, K, lanes = g.M, g.N, g.K, vector_bytes() // itemsize
    of_a, of_b = _matrices(g.batch, a_shape[:-2]), _matrices(g.batch, b_shape[:-2])
    batch, work = of_a.size - 1, float(M) * N * K * (of_a.size - 1)
    if not transpose_a and ((transpose_b and min(M, N) <= _FEW) or N <= _FEW < M):
        R, V = _DOTS
        rows, columns = math.ceil(M / R), math.ceil(N / V)
        m, n = _blocks(rows, columns, work, batch)
        blocks = math.ceil(rows / m), math.ceil(columns / n)
        pitch = K if transpose_b else math.ceil(K / lanes) * lanes
        kernel, pack = _dot_kernel(R, V), _transpose_kernel(lanes)
        if work < _LITTLE_WORK:
            kernel, pack = kernel.here, pack.here
        return Plan(
            g.y_shape,
            kernel,
            batch * math.prod(blocks),
            (M, N, K, pitch, of_a, of_b, *blocks, m, n),
            None if transpose_b else pack,
            (*_ranges(K, lanes), N, K, pitch, int(of_b[-1])),
            0,
            0 if transpose_b else int(of_b[-1]) * N * pitch,
        )

    def cost(tile: tuple[int, int]) -> float:
        R, V = tile
        vectors = math.ceil(N / lanes)
        if vectors % V != 1:  # a last panel of a single vector has a tile of its own
            vectors = math.ceil(vectors / V) * V
        return math.ceil(M / R) * R * vectors * _TILES[tile]

    R, V = min(_TILES, key=cost)
    width = V * lanes
    rows, columns = math.ceil(M / R), math.ceil(N / width)
    m, n = _blocks(rows, columns, work, batch)
    pack_b = transpose_b or rows > 2
    # Of row k of panel i of matrix j of b: k pitch + i panel + j matrix.
    steps = (width, K * width, columns * K * width) if pack_b else (N, width, K * N)
    blocks = math.ceil(rows / m), math.ceil(columns / n)
    multiply, pack = _panel_kernel(R, V, lanes), _pack_kernel(R, width)
    if work < _LITTLE_WORK:  # a launch would take longer
        multiply, pack = multiply.here, pack.here
    return Plan(
        g.y_shape,
        multiply,
        batch * math.prod(blocks),
        (M, N, K, of_a, of_b, *blocks, m, n, *steps),
        pack,
        (*_ranges(K, lanes), M, N, K, int(of_a[-1]), int(of_b[-1]) if pack_b else 0, transpose_a, transpose_b),
        int(of_a[-1]) * rows * K * R,
        int(of_b[-1]) * columns * K * width if pack_b else 0,
    )


def _ranges(K: int, lanes: int) -> tuple[int, int]:
    """Parts of the copying, and the steps of K in each: whatever the sizes of a and b, they take the same time."""
    each = max(math.ceil(K / 16 / lanes), 1) * lanes
    return math.ceil(K / each), each


def _matrices(batch: tuple[int, ...], own: tuple[int, ...]) -> np.ndarray:
    """For each product of the batch the number of its matrix among those of one factor; last, how many it has."""
    count = math.prod(own)
    return np.append(np.broadcast_to(np.arange(count).reshape(own), batch).reshape(-1), count)


# ---- kernels


@cache
def _dot_kernel(R: int, V: int) -> Any:
    @in_parts
    def dots(part, slot, a, b, bias, y, relu, M, N, K, pitch, of_a, of_b, blocks_m, blocks_n, m, n):
        """A block of y."""
        product, block_m, block_n = part // (blocks_m * blocks_n), part // blocks_n % blocks_m, part % blocks_n
        for row in range(block_m * m * R, min((block_m + 1) * m * R, M), R):
            for column in range(block_n * n * V, min((block_n + 1) * n * V, N), V):
                bias_at = column if bias.size else -1
                _dots(a, (of_a[product] * M + row) * K, M - row, b, (of_b[product] * N + column) * pitch, pitch,
                      N - column, K, y, (product * M + row) * N + column, N, bias, bias_at, relu, R, V)  # fmt: skip

    return dots


@cache
def _transpose_kernel(lanes: int) -> Any:
    @in_parts
    def transpose(part, slot, a, b, copies_a, copies_b, each, N, K, pitch, count):
        """The steps ``part each`` to ``(part + 1) each`` of the matrices b, as rows ``pitch`` apart."""
        for matrix in range(count):
            for k in range(part * each, min((part + 1) * each, K), lanes):
                to = matrix * N * pitch + k
                pack_columns(b, (matrix * K + k) * N, N, K - k, N, copies_b, to, pitch, lanes)

    return transpose


@cache
def _pack_kernel(R: int, width: int) -> Any:
    @in_parts
    def pack(part, slot, a, b, panels_a, panels_b, each, M, N, K, count_a, count_b, transpose_a, transpose_b):
        """The steps ``part each`` to ``(part + 1) each`` of all panels."""
        k = part * each
        steps = min(each, K - k)
        rows, columns = (M + R - 1) // R, (N + width - 1) // width
        for panel in range(count_a * rows):
            start, i, to = panel // rows * M * K, panel % rows * R, (panel * K + k) * R
            if transpose_a:
                pack_rows(a, start + k * M + i, M, M - i, steps, panels_a, to, R)
            else:
                pack_columns(a, start + i * K + k, K, M - i, steps, panels_a, to, R, R)
        for panel in range(count_b * columns):
            start, i, to = panel // columns * N * K, panel % columns * width, (panel * K + k) * width
            if transpose_b:
                pack_columns(b, start + i * K + k, K, N - i, steps, panels_b, to, width, width)
            else:
                pack_rows(b, start + k * N + i, N, N - i, steps, panels_b, to, width)

    return pack


@cache
def _panel_kernel(R: int, V: int, lanes: int) -> Any:
    width = V * lanes

    @in_parts
    def multiply(part, slot, a, b, bias, y, relu, M, N, K, of_a, of_b, blocks_m, blocks_n, m, n, pitch, panel, matrix):
        """A block of y."""
        rows, columns = (M + R - 1) // R, (N + width - 1) // width
        product, block_m, block_n = part // (blocks_m * blocks_n), part // blocks_n % blocks_m, part % blocks_n
        for k in range(0, max(K, 1), _DEPTH):
            steps, last = min(_DEPTH, K - k), relu if k + _DEPTH >= K else 0
            for column in range(block_n * n, min((block_n + 1) * n, columns)):
                b_at = of_b[product] * matrix + column * panel + k * pitch
                left = N - column * width
                bias_at = column * width if bias.size and k == 0 else -1
                for row in range(block_m * m, min((block_m + 1) * m, rows)):
                    a_at = ((of_a[product] * rows + row) * K + k) * R
                    y_at = (product * M + row * R) * N + column * width
                    if left >= width:
                        _tile(a, a_at, b, b_at, pitch, steps, y, y_at, N, M - row * R, left, bias, bias_at, k, last,
                              R, V, True)  # fmt: skip
                    elif left <= lanes:
                        _tile(a, a_at, b, b_at, pitch, steps, y, y_at, N, M - row * R, left, bias, bias_at, k, last,
                              R, 1, False)  # fmt: skip
                    else:
                        _tile(a, a_at, b, b_at, pitch, steps, y, y_at, N, M - row * R, left, bias, bias_at, k, last,
                              R, V, False)  # fmt: skip

    return multiply


@cache
def _slope_kernel(activation: str) -> Any:
    @in_parts
    def slope(part, slot, grad, y, h, sums, M, N, width):
        """Columns ``part width`` to ``(part + 1) width``."""
        _slope(grad, y, h, sums, M, N, part * width, min((part + 1) * width, N), activation)

    return slope


@simd
def _slope(
    s: Stage, grad: Pointer, y: Pointer, h: Pointer, sums: Pointer, M: Value, N: Value, start: Value, stop: Value,
    activation: str,
) -> None:  # fmt: skip
    """h = grad times the slope of the activation, and the sums of its columns; grad's, if there is none."""
    lanes = s.lanes(grad)

    def column(j: Value, count: Value | None) -> None:
        here = None if count is None else s.first(count, lanes)
        total = s.variable(s.zero(grad, lanes))
        with s.range(0, M) as i:
            value = grad.load(i * N + j, lanes, here)
            if activation:
                value = BACKWARD[activation](s, value, y.load(i * N + j, lanes, here), None, None)
                h.store(i * N + j, value, here)
            total.value = total.value + value
        sums.store(j, total.value, here)

    s.each(start, stop, lanes, column)


# ---- launchers


def _product(
    a: np.ndarray, b: np.ndarray, bias: np.ndarray | None, transposes: tuple[bool, bool], relu: bool,
    out: np.ndarray | None,
) -> np.ndarray:  # fmt: skip
    plan = _plan(a.shape, b.shape, *transposes, a.itemsize)
    y = np.empty(plan.y_shape, a.dtype) if out is None else out
    if y.size:
        flat_a, flat_b = a.reshape(-1), b.reshape(-1)
        if plan.pack:
            copies_a = workspace("gemm a", plan.copies_a, a.dtype)
            copies_b = workspace("gemm b", plan.copies_b, a.dtype)
            plan.pack(plan.packing[0], flat_a, flat_b, copies_a, copies_b, *plan.packing[1:])
            flat_a, flat_b = copies_a if plan.copies_a else flat_a, copies_b if plan.copies_b else flat_b
        bias = flat_a[:0] if bias is None else bias
        plan.kernel(plan.parts, flat_a, flat_b, bias, y.reshape(-1), int(relu), *plan.arguments)
    return y


def gemm(
    a: np.ndarray,
    b: np.ndarray,
    bias: np.ndarray | None,
    transpose_a: bool,
    transpose_b: bool,
    activation: str | None,
    out: np.ndarray | None,
) -> np.ndarray:
    y = _product(a, b, bias, (transpose_a, transpose_b), activation == "relu", out)
    if activation is not None and activation != "relu":
        y = deliver(activation_forward(y, activation), out)
    return y


def linear_backward(
    grad: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    y: np.ndarray | None,
    activation: str | None,
    wanted: tuple[bool, bool, bool],
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    M, N = grad.shape
    h, sums = grad, None
    if activation is not None or wanted[2]:
        sums = np.empty(N, grad.dtype)
        h = grad if activation is None else workspace("linear_backward", grad.size, grad.dtype).reshape(grad.shape)
        kernel = _slope_kernel(activation or "")
        kernel = kernel if grad.size >= _LITTLE else kernel.here
        saved = (grad if y is None else y).reshape(-1)
        kernel(math.ceil(N / _COLUMNS), grad.reshape(-1), saved, h.reshape(-1), sums, M, N, _COLUMNS)
    return (
        _product(h, b, None, (False, False), False, None) if wanted[0] else None,
        _product(h, a, None, (True, False), False, None) if wanted[1] else None,
        sums if wanted[2] else None,
    )
