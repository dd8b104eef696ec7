"""Compiled matrix products: tiles of sums in registers over panels in cache.

A part owns a block of y, and copies for itself what it needs: fetching what another core has written takes longer
than copying it once more.  Two ways, chosen by shape:

``panels``  Blocks of op(a) are copied into panels (K, R), and of op(b) into panels (K, V lanes), unless the rows of b
            are used once or twice and read in place; what a panel lacks at the edges is zero.  A tile of R rows and
            V vectors of y then reads both from front to back.  A panel of b, _DEPTH steps long, stays in the
            first-level cache while all of a's pass, which stay in the second level; the tiles of y take one such
            block's sums after the other's.  Source: Goto and van de Geijn, as in ``_simd_tile.py``.
``dots``    Few rows or columns of y, where rows of a and bᵀ lie along the sum already: tiles of dot products need no
            copies.  A small b that lies the other way is transposed for it.

Each sum over K runs in one order, whatever blocks y is cut into and so whatever the number of threads: first to last
in ``panels``, lane by lane in ``dots``.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from .._contracts import deliver
from .._dtypes import halves_in_float32, is_half
from .._jit import in_parts, serial, thread_slots, workspace
from .._simd import Pointer, Stage, Value, simd, vector_bytes
from .._simd_tile import Tile, pack_columns, pack_rows, registers_fit, totals
from .._threads import get_num_threads
from ..activation import activation_backward, activation_forward
from ..activation.numba_cpu import BACKWARD
from ..dropout import dropout_forward
from . import Layer, geometry
from ._layers import one_by_one, stack

_DEPTH = 256  # steps of K: a panel of b, of 128 bytes a step, is then 32 KB
_ROWS = 252  # of a block of a, of 0.25 MB then
_COLUMNS = 2048  # of a block of b
#: Tiles, rows and vectors, with the time of a multiplication relative to the processor's best.  The last ones are for
#: products of so few rows, which wait for b: they read more of a row of it before they go on to the next.
_TILES = (
    {(14, 2): 1.0, (10, 2): 1.04, (6, 4): 1.08, (4, 6): 1.1, (2, 8): 1.2, (1, 8): 1.4}
    if registers_fit(14, 2)
    else {(6, 2): 1.0, (2, 4): 1.2, (1, 6): 1.4}
)


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
    for i in range(R):  # by the time that the sums are ready, so is their place
        for v in range(V):
            y.prefetch(y_pitch * i + v * lanes, to_write=True)
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


# ---- plans: what depends on the shapes and the number of threads alone

#: Up to how many rows or columns ``dots`` is quicker.
_FEW = 24
#: Multiplications that one thread has done before another would have begun; ``dots`` mostly waits for memory.
_LITTLE_DOTS, _LITTLE_PANELS = 1 << 19, 1 << 21
_DOTS = (5, 5) if registers_fit(5, 5) else (3, 3)


class Plan(NamedTuple):
    """How a product of given shapes is computed."""

    y_shape: tuple[int, ...]
    kernel: Any
    parts: int
    space: tuple[int, int]  # elements for a part's copies of a and of b
    arguments: tuple[Any, ...]


@lru_cache(maxsize=1024)
def _plan(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...], transposes: tuple[bool, bool], itemsize: int, threads: int
) -> Plan:
    g = geometry(a_shape, b_shape, *transposes)
    M, N, K, lanes = g.M, g.N, g.K, vector_bytes() // itemsize
    of_a, of_b = _matrices(g.batch, a_shape[:-2]), _matrices(g.batch, b_shape[:-2])
    batch = len(of_a)
    transpose_a, transpose_b = transposes
    by_dots = not transpose_a and ((transpose_b and min(M, N) <= _FEW) or N <= _FEW < M)
    little = batch * M * N * K < (_LITTLE_DOTS if by_dots else _LITTLE_PANELS)
    blocks = 1 if little else math.ceil(threads / max(batch, 1))  # at most, of one product
    if by_dots:
        R, V = _DOTS
        m, n = (_share(M, R, blocks), N) if M >= N else (M, _share(N, V, blocks))
        pitch = K if transpose_b else _share(K, lanes, 1)
        kernel, space = _dot_kernel(R, V, lanes), (0, 0 if transpose_b else N * pitch)
        options: tuple[Any, ...] = (pitch, transpose_b)
    else:

        def cost(R: int, V: int, along_m: int) -> tuple[float, int, int, int, int]:
            """Cycles that a part takes for each step of K, the tile, and the part's block of y."""
            m, n = _share(M, R, along_m), _share(N, lanes, blocks // along_m)
            vectors = n // lanes
            if vectors % V != 1:  # a last panel of a single vector has a tile of its own
                vectors = math.ceil(vectors / V) * V
            return m * vectors * _TILES[R, V] / 2 + (m + n) / 2, R, V, m, n

        _, R, V, m, n = min(cost(*tile, along_m) for tile in _TILES for along_m in range(1, blocks + 1))
        copy_b, depth, width = transpose_b or m > 2 * R, min(K, _DEPTH), V * lanes
        kernel = _panel_kernel(R, V, lanes)
        space = min(m, _ROWS) * depth, _share(min(n, _COLUMNS), width, 1) * depth if copy_b else 0
        options = (copy_b, transpose_a, transpose_b)
    across = math.ceil(M / max(m, 1)), math.ceil(N / max(n, 1))
    parts = batch * math.prod(across)
    return Plan(
        g.y_shape, kernel.here if little else kernel, parts, space, (M, N, K, of_a, of_b, *across, m, n, *options)
    )


def _share(size: int, unit: int, shares: int) -> int:
    """A share of ``size``, as a whole number of units, the last of which may be beyond the end."""
    return math.ceil(size / unit / shares) * unit


def _matrices(batch: tuple[int, ...], own: tuple[int, ...]) -> np.ndarray:
    """For each product of the batch the number of its matrix among those of one factor."""
    return np.array(np.broadcast_to(np.arange(math.prod(own)).reshape(own), batch).reshape(-1))


# ---- kernels


@cache
def _dot_kernel(R: int, V: int, lanes: int) -> Any:
    @in_parts
    def dots(part, slot, a, b, bias, y, copies_a, copies_b, space_a, space_b, relu, M, N, K, of_a, of_b, blocks_m,
             blocks_n, m, n, pitch, transpose_b):  # fmt: skip
        """A block of y."""
        product, block_m, block_n = part // (blocks_m * blocks_n), part // blocks_n % blocks_m, part % blocks_n
        b_at, copy_at = of_b[product] * N * K, slot * space_b
        if not transpose_b:
            for k in range(0, K, lanes):
                pack_columns(b, b_at + k * N, N, K - k, N, copies_b, copy_at + k, pitch, lanes)
        for row in range(block_m * m, min((block_m + 1) * m, M), R):
            a_at = (of_a[product] * M + row) * K
            for column in range(block_n * n, min((block_n + 1) * n, N), V):
                y_at, bias_at = (product * M + row) * N + column, column if bias.size else -1
                if transpose_b:
                    _dots(a, a_at, M - row, b, b_at + column * K, K, N - column, K, y, y_at, N, bias, bias_at, relu,
                          R, V)  # fmt: skip
                else:
                    _dots(a, a_at, M - row, copies_b, copy_at + column * pitch, pitch, N - column, K, y, y_at, N, bias,
                          bias_at, relu, R, V)  # fmt: skip

    return dots


@cache
def _panel_kernel(R: int, V: int, lanes: int) -> Any:
    width = V * lanes
    most = _ROWS // R * R

    @serial
    def block(a, a_at, b, b_at, pitch, steps, y, y_at, N, rows, columns, bias, bias_at, k, relu):
        """The tile for so many columns."""
        if columns >= width:
            _tile(a, a_at, b, b_at, pitch, steps, y, y_at, N, rows, columns, bias, bias_at, k, relu, R, V, True)
        elif columns <= lanes:
            _tile(a, a_at, b, b_at, pitch, steps, y, y_at, N, rows, columns, bias, bias_at, k, relu, R, 1, False)
        else:
            _tile(a, a_at, b, b_at, pitch, steps, y, y_at, N, rows, columns, bias, bias_at, k, relu, R, V, False)

    @in_parts
    def panels(part, slot, a, b, bias, y, copies_a, copies_b, space_a, space_b, relu, M, N, K, of_a, of_b, blocks_m,
               blocks_n, m, n, copy_b, transpose_a, transpose_b):  # fmt: skip
        """A block of y, by blocks of b, and of a."""
        product, block_m, block_n = part // (blocks_m * blocks_n), part // blocks_n % blocks_m, part % blocks_n
        first_row, end_row = block_m * m, min((block_m + 1) * m, M)
        end_column = min((block_n + 1) * n, N)
        a_at, b_at = of_a[product] * M * K, of_b[product] * N * K
        for first in range(block_n * n, end_column, _COLUMNS):
            end = min(first + _COLUMNS, end_column)
            for k in range(0, max(K, 1), _DEPTH):
                steps, last = min(_DEPTH, K - k), relu if k + _DEPTH >= K else 0
                for column in range(first, end if copy_b else first, width):
                    to = slot * space_b + (column - first) * steps
                    if transpose_b:
                        pack_columns(b, b_at + column * K + k, K, N - column, steps, copies_b, to, width, width)
                    else:
                        pack_rows(b, b_at + k * N + column, N, N - column, steps, copies_b, to, width)
                for top in range(first_row, end_row, most):
                    bottom = min(top + most, end_row)
                    for row in range(top, bottom, R):
                        to = slot * space_a + (row - top) * steps
                        if transpose_a:
                            pack_rows(a, a_at + k * M + row, M, M - row, steps, copies_a, to, R)
                        else:
                            pack_columns(a, a_at + row * K + k, K, M - row, steps, copies_a, to, R, R)
                    for column in range(first, end, width):
                        bias_at = column if bias.size and k == 0 else -1
                        for row in range(top, bottom, R):
                            from_a = slot * space_a + (row - top) * steps
                            y_at = (product * M + row) * N + column
                            if copy_b:
                                from_b = slot * space_b + (column - first) * steps
                                block(copies_a, from_a, copies_b, from_b, width, steps, y, y_at, N, M - row,
                                       end - column, bias, bias_at, k, last)  # fmt: skip
                            else:
                                block(copies_a, from_a, b, b_at + k * N + column, N, steps, y, y_at, N, M - row,
                                       end - column, bias, bias_at, k, last)  # fmt: skip

    return panels


#: Elements of a gradient that one thread has done before another would have begun, and the columns of a part.
_LITTLE, _STRIP = 1 << 16, 64


@cache
def _slope_kernel(activation: str) -> Any:
    @in_parts
    def slope(part, slot, grad, y, h, sums, M, N):
        """_STRIP columns."""
        _slope(grad, y, h, sums, M, N, part * _STRIP, min((part + 1) * _STRIP, N), activation)

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
    plan = _plan(a.shape, b.shape, transposes, a.itemsize, get_num_threads())
    y = np.empty(plan.y_shape, a.dtype) if out is None else out
    if y.size:
        slots, flat_a, flat_b = 1 if plan.parts == 1 else thread_slots(), a.reshape(-1), b.reshape(-1)
        space_a, space_b = plan.space
        copies_a = workspace("gemm a", slots * space_a, a.dtype) if space_a else flat_a
        copies_b = workspace("gemm b", slots * space_b, a.dtype) if space_b else flat_b
        plan.kernel(
            plan.parts, flat_a, flat_b, flat_a[:0] if bias is None else bias, y.reshape(-1), copies_a, copies_b,
            space_a, space_b, int(relu), *plan.arguments,
        )  # fmt: skip
    return y


@halves_in_float32()
def gemm(
    a: np.ndarray,
    b: np.ndarray,
    bias: np.ndarray | None,
    saved: np.ndarray | None,
    offset: np.ndarray | None,
    transpose_a: bool,
    transpose_b: bool,
    activation: str | None,
    p: float,
    seed: int,
    gradient: str | None,
    out: np.ndarray | None,
) -> np.ndarray:
    y = product = _product(a, b, bias, (transpose_a, transpose_b), activation == "relu", out)
    if activation is not None and activation != "relu":
        y = activation_forward(y, activation)
    if p:
        y = dropout_forward(y, p, seed, offset)
    if gradient is not None:
        y = activation_backward(y, saved, gradient)
    return y if y is product else deliver(y, out)


def linear_backward(
    grad: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    y: np.ndarray | None,
    offset: np.ndarray | None,
    layer: Layer,
    wanted: tuple[bool, bool, bool],
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    activation = layer.activation
    if is_half(grad.dtype) and (activation is not None or layer.p):  # h is rounded before it is multiplied
        grad, y, activation = _through(grad, y, offset, layer), None, None
    elif layer.p:
        grad = dropout_forward(grad, layer.p, layer.seed, offset)
    return _linear_backward(grad, a, b, y, activation, wanted)


@halves_in_float32()
def _through(grad: np.ndarray, y: np.ndarray | None, offset: np.ndarray | None, layer: Layer) -> np.ndarray:
    h = dropout_forward(grad, layer.p, layer.seed, offset) if layer.p else grad
    return h if layer.activation is None else activation_backward(h, y, layer.activation)


def linear_layers_backward(
    grad: np.ndarray, y: np.ndarray | None, layers: tuple[Layer, ...], wanted: tuple[bool, ...], *arrays: np.ndarray
) -> tuple[np.ndarray | None, ...]:
    """One layer after the other: a slope takes no time while its array is in a core's cache, on the way to the sums."""
    return one_by_one(linear_backward, grad, y, stack(layers, wanted, arrays), wanted[0])


@halves_in_float32()
def _linear_backward(
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
        kernel(math.ceil(N / _STRIP), grad.reshape(-1), saved, h.reshape(-1), sums, M, N)
    return (
        _product(h, b, None, (False, False), False, None) if wanted[0] else None,
        _product(h, a, None, (True, False), False, None) if wanted[1] else None,
        sums if wanted[2] else None,
    )
