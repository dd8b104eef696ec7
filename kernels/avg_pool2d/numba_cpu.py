"""Average-pooling, compiled.

Forward: a vector of windows at a time (``_simd_windows.py``); x is read and y written once.  Backward of windows of
2x2 or 3x3 and stride 1 or 2: rows of dx are gathered from the few windows above them; dx is written once and never
read.  Under any other windows each row of dx is cleared and then summed while it is in cache.

Sums are added in the order of the taps and then divided, as in the reference; so the bits are the same.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np

from .._jit import in_parts
from .._simd import Number, Pointer, Stage, Value, simd, vector_bytes
from .._simd_windows import (
    Row,
    Scattered,
    Window,
    by_step,
    corners,
    narrow,
    over_planes,
    parts_of,
    row_of_windows,
    sizes,
)
from . import Geometry

_UNROLLED = ((2, 2), (3, 3))


def avg_pool2d_forward(x: np.ndarray, g: Geometry, out: np.ndarray | None) -> np.ndarray:
    kernel, parts, *numbers = _forward_plan(g)
    y = np.empty(g.y_shape, x.dtype) if out is None else out
    kernel(parts, x.reshape(-1), y.reshape(-1), *numbers)
    return y


def avg_pool2d_backward(grad: np.ndarray, g: Geometry, out: np.ndarray | None) -> np.ndarray:
    kernel, parts, *numbers = _backward_plan(g)
    dx = np.empty(g.x_shape, grad.dtype) if out is None else out
    kernel(parts, grad.reshape(-1), dx.reshape(-1), *numbers)
    return dx


@lru_cache(maxsize=1024)
def _forward_plan(g: Geometry) -> tuple[Any, int, np.ndarray, float]:
    within = g.padding == (0, 0) and 2 * g.P <= g.H and 2 * g.Q <= g.W
    if g.stride[1] > 2 or g.Q < vector_bytes() // 16:
        return _forward(0, 0, 0, False), *_numbers(g, g.P * g.Q)
    if _is_unrolled(g) and g.stride == (2, 2) and (g.R == 3 or within):
        return _forward(g.R, g.S, 2, g.R == 2), *_numbers(g, g.P)
    return _forward(0, 0, g.stride[1], False), *_numbers(g, g.P)


@lru_cache(maxsize=1024)
def _backward_plan(g: Geometry) -> tuple[Any, int, np.ndarray, float]:
    if _is_unrolled(g):
        step = g.stride[0]
        return _gathering_backward(g.R, g.S, step), *_numbers(g, -(-(g.H + g.padding[0]) // step))
    return _adding_backward, *_numbers(g, g.H, least=g.R)


def _is_unrolled(g: Geometry) -> bool:
    return (g.R, g.S) in _UNROLLED and g.stride in ((1, 1), (2, 2))


def _numbers(g: Geometry, rows: int, least: int = 1) -> tuple[int, np.ndarray, float]:
    """How many parts; sizes, followed by how much of the padding counts; and the divisor, 0 if elements are to be
    counted."""
    margins = g.padding if g.count_include_pad else (0, 0)
    told = np.array([*sizes(g, rows, least), *margins], np.int64)
    return parts_of(told), told, float(g.divisor_override or 0)


@cache
def _forward(R: int, S: int, step: int, within: bool) -> Any:
    @in_parts
    def forward(part, slot, x, y, sizes, divisor):
        total, each = sizes[12], sizes[13]
        _pool_part(x, y, sizes, divisor, part * each, min(part * each + each, total), R, S, step, within)

    return forward


@simd
def _pool_part(
    s: Stage, x: Pointer, y: Pointer, sizes: Pointer, divisor: Value, start: Value, stop: Value,
    R: int, S: int, step: int, within: bool,
) -> None:  # fmt: skip
    """Rows of windows, or without a ``step`` windows, from ``start`` on."""
    w, lanes = Window(sizes, R, S, step), s.lanes(x)

    def pool(windows: Row | Scattered, x: Pointer, y: Pointer) -> None:
        sum_ = s.variable(s.zero(x, lanes))

        def visit(tap: Number, value: Value, valid: Value | None) -> None:
            sum_.value = sum_.value + value  # 0 where there is none

        windows.taps(x, visit)
        y.store(0, sum_.value / _divisor(w, sizes, divisor, windows.top, windows.left, x), windows.exist)

    def row(plane: Value, p: Value) -> None:
        image, line = x + plane * (w.H * w.W), y + (plane * w.P + p) * w.Q
        row_of_windows(s, w, p, lanes, lambda windows: pool(windows, image, line + windows.q), within)

    if step:
        over_planes(s, start, stop, w.P, row)
    else:
        with s.range(start, stop, lanes) as n:
            pool(Scattered(s, w, n, s.integer(stop), lanes), x, y + n)


def _divisor(w: Window, sizes: Pointer, divisor: Value, top: Value, left: Value, like: Pointer) -> Value:
    """What the sums of windows that begin in row ``top`` and columns ``left`` are divided by."""

    def count(first: Value, taps: Number, size: Value, margin: Value) -> Value:
        stop, end, least = first + narrow(taps), narrow(size + margin), -narrow(margin)
        return (stop < end).where(stop, end) - (first > least).where(first, least)

    counted = count(left, w.S, w.W, sizes[16]) * count(top, w.R, w.H, sizes[15])
    return divisor.equals(0.0).where(counted.to(like.dtype), divisor.to(like.dtype))


@cache
def _gathering_backward(R: int, S: int, step: int) -> Any:
    @in_parts
    def backward(part, slot, grad, dx, sizes, divisor):
        total, each = sizes[12], sizes[13]
        _gather_part(grad, dx, sizes, divisor, part * each, min(part * each + each, total), R, S, step)

    return backward


@simd
def _gather_part(
    s: Stage, grad: Pointer, dx: Pointer, sizes: Pointer, divisor: Value, start: Value, stop: Value,
    R: int, S: int, step: int,
) -> None:  # fmt: skip
    w, lanes = Window(sizes, R, S, step), s.lanes(dx)

    def rows(plane: Value, i: Value) -> None:
        def load(p: Value, q: Value, exist: Value | None) -> Value:
            share = grad.load((plane * w.P + p) * w.Q + q, lanes, exist) / _divisor(
                w, sizes, divisor, *corners(s, w, p, q, lanes), dx
            )
            return share if exist is None else exist.where(share, 0.0)

        by_step(s, w, i, lanes, dx + plane * (w.H * w.W), load, lambda share, _: share, ascending=True)

    over_planes(s, start, stop, sizes[14], rows)


@in_parts
def _adding_backward(part, slot, grad, dx, sizes, divisor):
    H, W, R, S, P, Q, sh, sw, ph, pw, _, _, total, each, _, vertical, horizontal = sizes
    start, stop = part * each, min(part * each + each, total)
    dx[start * W : stop * W] = 0
    for plane in range(start // H, (stop - 1) // H + 1):
        low, high = max(start - plane * H, 0), min(stop - plane * H, H)  # the part's rows of this plane
        first, last = 0, P
        if high - low < H:
            first, last = max(low + ph - R + sh, 0) // sh, min((high - 1 + ph) // sh + 1, P)
        for p in range(last - 1, first - 1, -1):  # from the last window to the first, so taps are in order
            top = p * sh - ph
            rows = min(top + R, H + vertical) - max(top, -vertical)
            above, below = max(top, low), min(top + R, high)
            for q in range(Q - 1, -1, -1):
                left = q * sw - pw
                counted = rows * (min(left + S, W + horizontal) - max(left, -horizontal))
                share = grad[(plane * P + p) * Q + q] / dx.dtype.type(divisor if divisor else counted)
                before, after = max(left, 0), min(left + S, W)
                height, width = below - above, after - before
                if width == W:  # its rows follow each other
                    height, width = 1, height * W
                _add(dx, (plane * H + above) * W + before, W, height, width, share)


@simd
def _add(s: Stage, dx: Pointer, at: Value, pitch: Value, rows: Value, columns: Value, share: Value) -> None:
    """Add ``share`` to a block of elements."""
    lanes = s.lanes(dx)
    with s.range(0, columns, lanes) as column:
        here = s.first(columns - column, lanes)
        with s.range(0, rows) as row:
            place = at + row * pitch + column
            dx.store(place, dx.load(place, lanes, here) + share, here)
