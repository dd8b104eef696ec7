"""Max-pooling, compiled.

Forward: a vector of windows at a time (``_simd_windows.py``).  Taps are visited from the last to the first and win
if they are at least as large as the best so far, or NaN: so of equals, and of NaNs, the first remains.  x is read
and y and the codes are written once.

Backward of windows of 2x2 or 3x3 and stride 1 or 2: rows of dx are gathered from the few windows above them, whose
codes are compared with each tap's; dx is written once and never read.  Any other windows scatter: a part clears
some rows of dx and adds to them, window by window, while they are in cache.  Either way, where windows overlap the
sums are added in the order of the windows.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np

from .._jit import in_parts
from .._simd import Number, Pointer, Stage, Value, simd, vector_bytes
from .._simd_windows import Row, Scattered, Window, by_step, over_planes, parts_of, row_of_windows, sizes
from . import Geometry

_UNROLLED = ((2, 2), (3, 3))


def max_pool2d_forward(x: np.ndarray, g: Geometry, out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    kernel, parts, plan = _forward_plan(g)
    y, codes = np.empty(g.y_shape, x.dtype) if out is None else out, np.empty(g.y_shape, g.code_dtype)
    kernel(parts, x.reshape(-1), y.reshape(-1), codes.reshape(-1), plan)
    return y, codes


def max_pool2d_backward(grad: np.ndarray, codes: np.ndarray, g: Geometry, out: np.ndarray | None) -> np.ndarray:
    kernel, parts, *plan = _backward_plan(g)
    dx = np.empty(g.x_shape, grad.dtype) if out is None else out
    kernel(parts, grad.reshape(-1), codes.reshape(-1), dx.reshape(-1), *plan)
    return dx


def max_pool2d_gather(x: np.ndarray, codes: np.ndarray, g: Geometry, out: np.ndarray | None) -> np.ndarray:
    y = np.empty(g.y_shape, x.dtype) if out is None else out
    parts, *plan = _gather_plan(g)
    _gather(parts, x.reshape(-1), codes.reshape(-1), y.reshape(-1), *plan)
    return y


@lru_cache(maxsize=1024)
def _forward_plan(g: Geometry) -> tuple[Any, int, np.ndarray]:
    within = g.padding == (0, 0) and 2 * g.P <= g.H and 2 * g.Q <= g.W
    if g.stride[1] > 2 or g.Q < vector_bytes() // 16:
        return _forward(0, 0, 0, False), *_parts_and_sizes(g, g.P * g.Q)
    if _is_unrolled(g) and g.stride == (2, 2) and (g.R == 3 or within):
        return _forward(g.R, g.S, 2, g.R == 2), *_parts_and_sizes(g, g.P)
    return _forward(0, 0, g.stride[1], False), *_parts_and_sizes(g, g.P)


@lru_cache(maxsize=1024)
def _backward_plan(g: Geometry) -> tuple[Any, ...]:
    if _is_unrolled(g):
        step = g.stride[0]
        return _gathering_backward(g.R, g.S, step), *_parts_and_sizes(g, -(-(g.H + g.padding[0]) // step))
    return _scattering_backward, *_parts_and_sizes(g, g.H, (g.R - 1) * g.dilation[0]), _taps(g)


@lru_cache(maxsize=1024)
def _gather_plan(g: Geometry) -> tuple[Any, ...]:
    return *_parts_and_sizes(g, g.P), _taps(g)


def _parts_and_sizes(g: Geometry, rows: int, least: int = 1) -> tuple[int, np.ndarray]:
    told = sizes(g, rows, least)
    return parts_of(told), told


def _is_unrolled(g: Geometry) -> bool:
    return (g.R, g.S) in _UNROLLED and g.stride in ((1, 1), (2, 2)) and g.dilation == (1, 1)


def _taps(g: Geometry) -> np.ndarray:
    """How far below and beside its window's corner each code's element is."""
    return np.array([(r * g.dilation[0], s * g.dilation[1]) for r in range(g.R) for s in range(g.S)], np.int64)


# ---- forward


@cache
def _forward(R: int, S: int, step: int, within: bool) -> Any:
    @in_parts
    def forward(part, slot, x, y, codes, sizes):
        total, each = sizes[12], sizes[13]
        _pool_part(x, y, codes, sizes, part * each, min(part * each + each, total), R, S, step, within)

    return forward


@simd
def _pool_part(
    s: Stage, x: Pointer, y: Pointer, codes: Pointer, sizes: Pointer, start: Value, stop: Value,
    R: int, S: int, step: int, within: bool,
) -> None:  # fmt: skip
    """Rows of windows, or without a ``step`` windows, from ``start`` on."""
    w, lanes = Window(sizes, R, S, step), s.lanes(x)
    if not step:
        with s.range(start, stop, lanes) as n:
            _pool(s, Scattered(s, w, n, s.integer(stop), lanes), x, y + n, codes + n)
        return

    def row(plane: Value, p: Value) -> None:
        at = (plane * w.P + p) * w.Q
        pool_row(s, w, x + plane * (w.H * w.W), p, y + at, codes + at, within)

    over_planes(s, start, stop, w.P, row)


def pool_row(s: Stage, w: Window, x: Pointer, p: Value, y: Pointer, codes: Pointer, within: bool = False) -> None:
    """Write row ``p`` of the windows of plane ``x`` to ``y`` and ``codes``, which begin with that row.

    Args:
        within: whether no tap lies outside the input.
    """

    def windows(these: Row) -> None:
        _pool(s, these, x, y + these.q, codes + these.q)

    row_of_windows(s, w, p, s.lanes(x), windows, within)


def _pool(s: Stage, windows: Row | Scattered, x: Pointer, y: Pointer, codes: Pointer) -> None:
    lanes, w = s.lanes(x), windows.w
    best = s.variable(s.constant(-np.inf, x, lanes))
    last = s.integer(w.R * w.S - 1).to(codes.dtype)  # of a window without a tap inside the input
    code = s.variable(s.splat(last, lanes))

    def visit(tap: Number, value: Value, valid: Value | None) -> None:
        wins = (value >= best.value) | value.is_nan()
        if valid is not None:
            wins = wins & valid
        best.value = wins.where(value, best.value)
        code.value = wins.where(s.integer(tap).to(codes.dtype), code.value)

    windows.taps(x, visit, backwards=True)
    y.store(0, best.value, windows.exist)
    codes.store(0, code.value, windows.exist)


# ---- backward


@cache
def _gathering_backward(R: int, S: int, step: int) -> Any:
    @in_parts
    def backward(part, slot, grad, codes, dx, sizes):
        total, each = sizes[12], sizes[13]
        _gather_part(grad, codes, dx, sizes, part * each, min(part * each + each, total), R, S, step)

    return backward


@simd
def _gather_part(
    s: Stage, grad: Pointer, codes: Pointer, dx: Pointer, sizes: Pointer, start: Value, stop: Value,
    R: int, S: int, step: int,
) -> None:  # fmt: skip
    w, lanes = Window(sizes, R, S, step), s.lanes(dx)

    def rows(plane: Value, i: Value) -> None:
        def load(p: Value, q: Value, exist: Value | None) -> tuple[Value, Value]:
            at = (plane * w.P + p) * w.Q + q
            return grad.load(at, lanes, exist), codes.load(at, lanes, exist)

        def tap(window: tuple[Value, Value], code: int) -> Value:
            return window[1].equals(code).where(window[0], 0.0)

        by_step(s, w, i, lanes, dx + plane * (w.H * w.W), load, tap, ascending=False)

    over_planes(s, start, stop, sizes[14], rows)


@in_parts
def _scattering_backward(part, slot, grad, codes, dx, sizes, taps):
    H, W, _, _, P, Q, sh, sw, ph, pw, _, _, total, each, _ = sizes
    reach = taps[-1, 0]
    start, stop = part * each, min(part * each + each, total)
    dx[start * W : stop * W] = 0
    for plane in range(start // H, (stop - 1) // H + 1):
        low, high = max(start - plane * H, 0), min(stop - plane * H, H)  # the part's rows of this plane
        first, last = 0, P
        if high - low < H:
            first, last = max(low + ph - reach + sh - 1, 0) // sh, min((high - 1 + ph) // sh + 1, P)
        for p in range(first, last):
            for q in range(Q):
                at = (plane * P + p) * Q + q
                code = codes[at]
                if 0 <= code < len(taps):
                    h, w = p * sh - ph + taps[code, 0], q * sw - pw + taps[code, 1]
                    if low <= h < high and 0 <= w < W:
                        dx[(plane * H + h) * W + w] += grad[at]


# ---- gather


@in_parts
def _gather(part, slot, x, codes, y, sizes, taps):
    H, W, _, _, P, Q, sh, sw, ph, pw, _, _, total, each, _ = sizes
    for row in range(part * each, min(part * each + each, total)):
        plane, p = row // P, row % P
        for q in range(Q):
            at = row * Q + q
            code = codes[at]
            y[at] = 0
            if 0 <= code < len(taps):
                h, w = p * sh - ph + taps[code, 0], q * sw - pw + taps[code, 1]
                if 0 <= h < H and 0 <= w < W:
                    y[at] = x[(plane * H + h) * W + w]
