"""What the compiled normalisations share: sums over runs and columns, and the elementwise passes that use them.

A *run* is a stretch of neighbouring numbers; several runs of one length, a stride apart, make a set.  A sum keeps
four vectors of partial sums, so that additions do not wait for each other, adds these in a fixed order, and goes
on in float64 after every ``_BLOCK`` numbers: rounding then grows with the block, not with the set.  Means and
squares about them are two passes; a set that the caches hold is read from memory once.

Coefficients of the elementwise passes are numbers, or arrays read from ``column`` on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from ._jit import serial
from ._simd import Pointer, Stage, Value, simd

_CHAINS = 4
_BLOCK = 16384  # numbers
_BLOCK_ROWS = 1024
_MOST_PARTS = 64


def parts_of(units: int, size: int) -> int:
    """Into how many parts the work on ``units`` sets with ``size`` numbers together is cut: 1 if that is little."""
    return max(min(units, size // _BLOCK, _MOST_PARTS), 1)


@lru_cache(64)
def filled(size: int, value: float, dtype: np.dtype) -> np.ndarray:
    """In place of a weight (1) or a bias (-0, which leaves every number as it is) that is not given; only read."""
    return np.full(size, value, dtype)


# ---- vectors


def _sums(
    s: Stage,
    like: Pointer,
    runs: Value,
    stride: Value,
    length: Value,
    add: Callable[[list[Value], Value, Value | None], list[Value]],
    number: int = 1,
) -> list[Value]:
    """``number`` sums over runs, in float64.

    Args:
        add: ``add(sums, i, here)`` returns the sums with the vectors at ``i`` added, of which those lanes count
            that the mask ``here`` names; None names all.
    """
    lanes = s.lanes(like)
    sums = [[s.variable(s.zero(like, lanes)) for _ in range(number)] for _ in range(_CHAINS)]

    def extend(chain: list[Any], i: Value, here: Value | None) -> None:
        for variable, value in zip(chain, add([v.value for v in chain], i, here), strict=True):
            variable.value = value

    whole = length // (_CHAINS * lanes) * (_CHAINS * lanes)
    with s.range(0, runs) as run:
        first = run * stride
        with s.range(0, whole, _CHAINS * lanes) as i:
            for k, chain in enumerate(sums):
                extend(chain, first + i + k * lanes, None)
        with s.range(whole, length, lanes) as i:
            extend(sums[0], first + i, s.first(length - i, lanes))
    a, b, c, d = ([v.value for v in chain] for chain in sums)
    return [((a[n] + b[n]) + (c[n] + d[n])).sum().to("float64") for n in range(number)]


def _only(here: Value | None, value: Value) -> Value:
    """``value`` in the lanes that count, elsewhere 0."""
    return value if here is None else here.where(value, 0.0)


def _coefficient(s: Stage, given: Pointer | Value, like: Pointer, i: Value, here: Value | None) -> Value:
    if isinstance(given, Pointer):
        return given.load(i, s.lanes(like), here)
    return s.splat(given.to(like.dtype), s.lanes(like))


def _each(s: Stage, like: Pointer, n: Value, body: Callable[[Value, Value | None], None]) -> None:
    """``body(i, here)`` for ``n`` numbers, a vector at a time."""
    lanes = s.lanes(like)
    whole = n // lanes * lanes
    with s.range(0, whole, lanes) as i:
        body(i, None)
    with s.when(whole < n):
        body(whole, s.first(n - whole, lanes))


@simd(returns="float64")
def _sum(s: Stage, x: Pointer, start: Value, runs: Value, stride: Value, length: Value) -> Value:
    x, lanes = x + start, s.lanes(x)
    return _sums(s, x, runs, stride, length, lambda sums, i, here: [sums[0] + x.load(i, lanes, here)])[0]


@simd(returns="float64")
def _squares(s: Stage, x: Pointer, start: Value, runs: Value, stride: Value, length: Value, mean: Value) -> Value:
    x, lanes = x + start, s.lanes(x)
    center = s.splat(mean, lanes)

    def add(sums: list[Value], i: Value, here: Value | None) -> list[Value]:
        d = _only(here, x.load(i, lanes, here) - center)
        return [s.fma(d, d, sums[0])]

    return _sums(s, x, runs, stride, length, add)[0]


@simd
def _gradient_sums(
    s: Stage,
    g: Pointer,
    x: Pointer,
    start: Value,
    runs: Value,
    stride: Value,
    length: Value,
    mean: Value,
    rstd: Value,
    sums: Pointer,
    at: Value,
) -> None:
    g, x, lanes = g + start, x + start, s.lanes(x)
    center, scale = s.splat(mean, lanes), s.splat(rstd, lanes)

    def add(sums: list[Value], i: Value, here: Value | None) -> list[Value]:
        of_g = g.load(i, lanes, here)
        xhat = _only(here, (x.load(i, lanes, here) - center) * scale)
        return [sums[0] + of_g, s.fma(of_g, xhat, sums[1])]

    for k, value in enumerate(_sums(s, x, runs, stride, length, add, 2)):
        sums[at + k] = sums[at + k] + value


@simd
def _row_gradient_sums(
    s: Stage,
    g: Pointer,
    x: Pointer,
    start: Value,
    length: Value,
    mean: Value,
    rstd: Value,
    weight: Pointer,
    weight_at: Value,
    dweight: Pointer,
    dweight_at: Value,
    dbias_at: Value,
    sums: Pointer,
    at: Value,
) -> None:
    g, x, lanes = g + start, x + start, s.lanes(x)
    weight, dbias, dweight = weight + weight_at, dweight + dbias_at, dweight + dweight_at
    center, scale = s.splat(mean, lanes), s.splat(rstd, lanes)

    def add(sums: list[Value], i: Value, here: Value | None) -> list[Value]:
        of_g = g.load(i, lanes, here)
        xhat = _only(here, (x.load(i, lanes, here) - center) * scale)
        dweight.store(i, s.fma(of_g, xhat, dweight.load(i, lanes, here)), here)
        dbias.store(i, dbias.load(i, lanes, here) + of_g, here)
        h = of_g * weight.load(i, lanes, here)
        return [sums[0] + h, s.fma(h, xhat, sums[1])]

    for k, value in enumerate(_sums(s, x, s.integer(1), s.integer(0), length, add, 2)):
        sums[at + k] = sums[at + k] + value


def _column_sums(
    s: Stage,
    like: Pointer,
    rows: Value,
    columns: Value,
    totals: list[Pointer],
    adder: Callable[[Value, Value | None], Callable[[list[Value], Value], list[Value]]],
) -> None:
    """Into each of ``totals``, float64, the sums of ``columns`` columns over ``rows`` rows.

    Args:
        adder: ``adder(j, here)`` gives, for the columns from ``j`` on, ``add(sums, row)``, as in :func:`_sums`.
    """
    lanes, number = s.lanes(like), len(totals)

    def column(j: Value, here: Value | None) -> None:
        add = adder(j, here)
        whole = [s.variable(s.zero(like, lanes).to("float64")) for _ in range(number)]
        with s.range(0, rows, _BLOCK_ROWS) as first:
            sums = [[s.variable(s.zero(like, lanes)) for _ in range(number)] for _ in range(_CHAINS)]
            end = s.variable(first + _BLOCK_ROWS)
            with s.when(rows < end.value):
                end.value = rows
            fours = first + (end.value - first) // _CHAINS * _CHAINS

            def extend(k: int, row: Value) -> None:
                for variable, value in zip(sums[k], add([v.value for v in sums[k]], row), strict=True):
                    variable.value = value

            for chain in sums:
                for variable in chain:
                    variable.value = s.zero(like, lanes)
            with s.range(first, fours, _CHAINS) as row:
                for k in range(_CHAINS):
                    extend(k, row + k)
            with s.range(fours, end.value) as row:
                extend(0, row)
            a, b, c, d = ([v.value for v in chain] for chain in sums)
            for n in range(number):
                whole[n].value = whole[n].value + ((a[n] + b[n]) + (c[n] + d[n])).to("float64")
        for total, variable in zip(totals, whole, strict=True):
            total.store(j, variable.value, here)

    _each(s, like, columns, column)


@simd
def column_sums(s: Stage, x: Pointer, start: Value, rows: Value, stride: Value, columns: Value, total: Pointer) -> None:
    """``total[j]`` = the sum of column j; the first row begins at ``start``, the next ones ``stride`` behind it."""
    x, lanes = x + start, s.lanes(x)
    _column_sums(
        s,
        x,
        rows,
        columns,
        [total],
        lambda j, here: lambda sums, row: [sums[0] + x.load(row * stride + j, lanes, here)],
    )


@simd
def column_squares(
    s: Stage, x: Pointer, start: Value, rows: Value, stride: Value, columns: Value, mean: Pointer, total: Pointer
) -> None:
    """The same of (x - mean[j])², with ``mean`` of these columns."""
    x, lanes = x + start, s.lanes(x)

    def adder(j: Value, here: Value | None) -> Callable[[list[Value], Value], list[Value]]:
        center = mean.load(j, lanes, here)

        def add(sums: list[Value], row: Value) -> list[Value]:
            d = x.load(row * stride + j, lanes, here) - center
            return [s.fma(d, d, sums[0])]

        return add

    _column_sums(s, x, rows, columns, [total], adder)


@simd
def column_gradient_sums(
    s: Stage,
    g: Pointer,
    x: Pointer,
    start: Value,
    rows: Value,
    stride: Value,
    columns: Value,
    mean: Pointer,
    rstd: Pointer,
    of_g: Pointer,
    of_product: Pointer,
) -> None:
    """The same of g, and of g xhat."""
    g, x, lanes = g + start, x + start, s.lanes(x)

    def adder(j: Value, here: Value | None) -> Callable[[list[Value], Value], list[Value]]:
        center, scale = mean.load(j, lanes, here), rstd.load(j, lanes, here)

        def add(sums: list[Value], row: Value) -> list[Value]:
            i = row * stride + j
            gradient = g.load(i, lanes, here)
            return [sums[0] + gradient, s.fma(gradient, (x.load(i, lanes, here) - center) * scale, sums[1])]

        return add

    _column_sums(s, x, rows, columns, [of_g, of_product], adder)


@simd
def normalize(
    s: Stage,
    x: Pointer,
    y: Pointer,
    start: Value,
    n: Value,
    column: Value,
    mean: Pointer | Value,
    rstd: Pointer | Value,
    weight: Pointer | Value,
    bias: Pointer | Value,
) -> None:
    """y = (x - mean) rstd weight + bias, for ``n`` numbers from ``start`` on."""

    def body(i: Value, here: Value | None) -> None:
        m, r, w, b = (_coefficient(s, given, x, column + i, here) for given in (mean, rstd, weight, bias))
        xhat = (x.load(start + i, s.lanes(x), here) - m) * r
        y.store(start + i, s.fma(xhat, w, b), here)

    _each(s, x, n, body)


@simd
def input_gradient(
    s: Stage,
    g: Pointer,
    x: Pointer,
    dx: Pointer,
    start: Value,
    n: Value,
    column: Value,
    mean: Pointer | Value,
    rstd: Pointer | Value,
    weight: Pointer | Value,
    of_product: Pointer | Value,
    of_g: Pointer | Value,
    scale: Pointer | Value,
) -> None:
    """dx = (weight g - of_g - xhat of_product) scale, for ``n`` numbers from ``start`` on."""
    coefficients = mean, rstd, weight, of_product, of_g, scale

    def body(i: Value, here: Value | None) -> None:
        m, r, w, p, q, c = (_coefficient(s, given, x, column + i, here) for given in coefficients)
        xhat = (x.load(start + i, s.lanes(x), here) - m) * r
        h = g.load(start + i, s.lanes(x), here) * w
        dx.store(start + i, (s.fma(xhat, -p, h) - q) * c, here)

    _each(s, x, n, body)


# ---- sets of runs: ``runs`` runs of ``length`` numbers, the first from ``start`` on, the next ``stride`` behind it


@serial
def _together(runs, length):
    """How many runs make a block; of a single run, one, without a division."""
    return max(_BLOCK // length, 1) if runs > 1 else 1


@serial
def blocks_of(runs, length):
    """Into how many blocks of at most ``_BLOCK`` numbers the functions below cut a set."""
    return -(-runs // _together(runs, length)) * -(-length // _BLOCK)


@serial
def block(b, runs, length):
    """Block ``b``, a set itself: its first run, where in that it begins, how many runs, and how much of each."""
    across, down = -(-length // _BLOCK), _together(runs, length)
    run, i = b // across * down, b % across * _BLOCK
    return run, i, min(down, runs - run), min(_BLOCK, length - i)


@serial
def total(x, start, stride, runs, length):
    """The sum of a set, float64."""
    result, down = 0.0, _together(runs, length)
    for run in range(0, runs, down):
        for i in range(0, length, _BLOCK):
            result += _sum(x, start + run * stride + i, min(down, runs - run), stride, min(_BLOCK, length - i))
    return result


@serial
def squares(x, start, stride, runs, length, mean):
    """The sum of (x - mean)²."""
    result, down = 0.0, _together(runs, length)
    for run in range(0, runs, down):
        for i in range(0, length, _BLOCK):
            count, n = min(down, runs - run), min(_BLOCK, length - i)
            result += _squares(x, start + run * stride + i, count, stride, n, mean)
    return result


@serial
def rstd_of(squares, count, eps, x):
    """1 / sqrt(var + eps), in the dtype of ``x``."""
    return x.dtype.type(1 / np.sqrt(squares / count + eps))


@serial
def statistics(x, start, stride, runs, length, eps):
    """Mean and rstd of a set."""
    mean = x.dtype.type(total(x, start, stride, runs, length) / (runs * length))
    return mean, rstd_of(squares(x, start, stride, runs, length, mean), runs * length, eps, x)


@serial
def gradient_sums(g, x, start, stride, runs, length, mean, rstd, sums, at):
    """``sums[at]`` and ``sums[at + 1]``, float64: the sums of g and of g xhat."""
    sums[at] = sums[at + 1] = 0
    down = _together(runs, length)
    for run in range(0, runs, down):
        for i in range(0, length, _BLOCK):
            count, n = min(down, runs - run), min(_BLOCK, length - i)
            _gradient_sums(g, x, start + run * stride + i, count, stride, n, mean, rstd, sums, at)


@serial
def row_gradient_sums(g, x, start, length, column, mean, rstd, weight, dweight, dweight_at, dbias_at, sums, at):
    """The same of h = weight g, and of h xhat, of one run; adds g xhat and g to dweight from both places on.

    ``weight`` begins at ``column``; ``dweight`` and dbias are places in one array.
    """
    sums[at] = sums[at + 1] = 0
    for i in range(0, length, _BLOCK):
        _row_gradient_sums(
            g, x, start + i, min(_BLOCK, length - i), mean, rstd, weight, column + i, dweight, dweight_at + i,
            dbias_at + i, sums, at,
        )  # fmt: skip
