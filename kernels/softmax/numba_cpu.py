"""Compiled softmax and log-softmax.

The unit of work is a *line*: what one vector of sums belongs to.  Along the last axis a line is one row, whose lanes
are folded into one number.  Along any other axis it is up to four vectors of neighbouring columns, whose lanes are
softmaxes of their own; nothing needs to be transposed.  Where only 2, 4 or 8 columns are neighbours, a vector would
be mostly empty: these columns together are one row, in which every second, fourth or eighth lane is folded.

Parts are ranges of lines of about :data:`PART` elements; a single part is not worth waking threads.

A row of up to eight vectors stays in registers: x is read and y written, once.  A longer one takes a pass for the
maximum, a pass for the exponentials and their sum, which leaves them in y, and a pass that scales them (softmax), or
that reads x again (log-softmax); backward, a pass for the sum and one for the result.  It stays in the second-level
cache meanwhile, so that memory sees each number once here too.

The maximum overlooks NaN; the sum does not, and makes a NaN of all that it divides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np

from .._jit import in_parts
from .._simd import Number, Pointer, Stage, Value, simd, vector_bytes
from .._simd_math import exp, exp_of_negative, log1p

_VECTORS = 4  # of a line: as many sums that do not wait for each other
_HELD = 8  # of a row that stays in registers
PART = 16384  # elements


def vectors_of_line(vectors: int, row: bool) -> tuple[int, bool]:
    """How many of so many vectors are a step of a :class:`Line`, and whether they are held."""
    held = row and vectors <= _HELD
    return vectors if held else min(vectors, _VECTORS), held


class Line:
    """V vectors wide, over whose steps sums and maxima run; ``width`` elements of the last steps count.

    Args:
        like: an array of the dtype.
        V: vectors of a step.
        period: lanes that are so far apart belong to one sum; 0: each to its own.
        held: there is one step, with at least one element in its last vector; what is stored stays in registers.
        stride: from one step to the next, in elements.
        whole: steps in which all elements count.
        partial: steps after them in which ``width`` do.
    """

    def __init__(
        self, s: Stage, like: Pointer, V: int, period: int, held: bool, stride: Number, whole: Value, partial: Value,
        width: Value,
    ) -> None:  # fmt: skip
        self.s, self.like, self.V, self.period, self.held = s, like, V, period, held
        self.lanes = s.lanes(like)
        self.stride, self.whole, self.partial = stride, whole, partial
        self._masks = [s.first(width - v * self.lanes, self.lanes) for v in range(V)]
        self._kept: dict[int, Value] = {}

    def each(self, body: Callable[[Value, int, Value | None], None]) -> None:
        """``body(i, v, here)`` for each vector: its place, its number in the step, and the mask of what counts."""
        s, lanes = self.s, self.lanes
        if self.held:
            for v in range(self.V):
                body(s.integer(v * lanes), v, self._masks[v] if v == self.V - 1 else None)
            return
        with s.range(0, self.whole) as step:
            for v in range(self.V):
                body(step * self.stride + v * lanes, v, None)
        with s.range(self.whole, self.whole + self.partial) as step:
            for v in range(self.V):
                body(step * self.stride + v * lanes, v, self._masks[v])

    def fold(
        self,
        initial: float,
        step: Callable[[Value, Value, int, Value | None], Value],
        combine: Callable[[Value, Value], Value] = lambda a, b: a + b,
    ) -> list[Value]:
        """What ``step(so far, i, v, here)`` makes of all vectors, for each of the V; in a row the same for all."""
        s = self.s
        start = s.constant(initial, self.like, self.lanes)
        variables = [s.variable(start) for _ in range(self.V)]
        for variable in variables:  # each time anew: the line may lie in a loop
            variable.value = start

        def body(i: Value, v: int, here: Value | None) -> None:
            variables[v].value = step(variables[v].value, i, v, here)

        self.each(body)
        values = [variable.value for variable in variables]
        if not self.period:
            return values
        while len(values) > 1:
            values = [
                combine(*values[i : i + 2]) if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)
            ]
        value = values[0]
        while (half := value.lanes // 2) >= self.period:
            value = combine(value.shuffle(list(range(half))), value.shuffle(list(range(half, 2 * half))))
        if self.period > 1:
            return [value.shuffle([i % self.period for i in range(self.lanes)])] * self.V
        return [self.s.splat(value, self.lanes)] * self.V

    def map(self, function: Callable[[Value], Value], values: list[Value]) -> list[Value]:
        """``function`` of what :meth:`fold` gave; computed once if all are the same."""
        if not self.period:
            return [function(value) for value in values]
        return [function(values[0])] * self.V

    def load(self, x: Pointer, i: Value, here: Value | None, other: float = 0.0) -> Value:
        """A vector of ``x``, with ``other`` in lanes that do not count."""
        value = x.load(i, self.lanes, here)
        return here.where(value, other) if here is not None and other else value

    def keeps(self, here: Value | None) -> bool:
        """Whether terms are kept, or cheaper to compute again: what masked stores wrote is slow to load soon after."""
        return self.period > 0 or here is None

    def keep(self, y: Pointer, i: Value, v: int, here: Value | None, value: Value) -> None:
        """Leave ``value`` for :meth:`kept`, in ``y`` if it has to be in memory."""
        if self.held:
            self._kept[v] = value
        else:
            y.store(i, value, here)

    def kept(self, y: Pointer, i: Value, v: int, here: Value | None) -> Value:
        return self._kept[v] if self.held else y.load(i, self.lanes, here)


def largest(line: Line, x: Pointer) -> list[Value]:
    """The maximum, of numbers that are not NaN."""

    def larger(best: Value, x: Value) -> Value:
        return (x > best).where(x, best)

    return line.fold(-math.inf, lambda best, i, v, here: larger(best, line.load(x, i, here, -math.inf)), larger)


def exponential(line: Line, x: Pointer, m: list[Value], i: Value, v: int, here: Value | None) -> Value:
    """e^(x - m); 0 in lanes that do not count."""
    return exp_of_negative(line.s, line.load(x, i, here, -math.inf) - m[v])


def exponentials(line: Line, x: Pointer, m: list[Value], y: Pointer | None) -> list[Value]:
    """The sum of e^(x - m), which is at least 1; its terms are kept in ``y`` if there is one."""

    def step(total: Value, i: Value, v: int, here: Value | None) -> Value:
        e = exponential(line, x, m, i, v, here)
        if y is not None and line.keeps(here):
            line.keep(y, i, v, here, e)
        return total + e

    return line.fold(0.0, step)


def _softmax(s: Stage, line: Line, x: Pointer, _: Pointer, y: Pointer) -> None:
    m = largest(line, x)
    scale = line.map(lambda total: 1.0 / total, exponentials(line, x, m, y))

    def body(i: Value, v: int, here: Value | None) -> None:
        e = line.kept(y, i, v, here) if line.keeps(here) else exponential(line, x, m, i, v, here)
        y.store(i, e * scale[v], here)

    line.each(body)


def _log_softmax(s: Stage, line: Line, x: Pointer, _: Pointer, y: Pointer) -> None:
    m = largest(line, x)
    log = line.map(lambda total: log1p(s, total - 1.0), exponentials(line, x, m, None))
    line.each(lambda i, v, here: y.store(i, x.load(i, line.lanes, here) - m[v] - log[v], here))


def _softmax_backward(s: Stage, line: Line, grad: Pointer, y: Pointer, dx: Pointer) -> None:
    def both(i: Value, here: Value | None) -> tuple[Value, Value]:
        return grad.load(i, line.lanes, here), y.load(i, line.lanes, here)

    dot = line.fold(0.0, lambda total, i, v, here: s.fma(*both(i, here), total))

    def body(i: Value, v: int, here: Value | None) -> None:
        g, p = both(i, here)
        dx.store(i, (g - dot[v]) * p, here)

    line.each(body)


def _log_softmax_backward(s: Stage, line: Line, grad: Pointer, y: Pointer, dx: Pointer) -> None:
    total = line.fold(0.0, lambda total, i, v, here: total + grad.load(i, line.lanes, here))

    def body(i: Value, v: int, here: Value | None) -> None:
        p = exp(s, y.load(i, line.lanes, here))
        dx.store(i, grad.load(i, line.lanes, here) - p * total[v], here)

    line.each(body)


_KINDS = {
    "softmax_forward": _softmax,
    "log_softmax_forward": _log_softmax,
    "softmax_backward": _softmax_backward,
    "log_softmax_backward": _log_softmax_backward,
}


@simd
def _lines(
    s: Stage, kind: str, V: int, period: int, held: bool, a: Pointer, b: Pointer, out: Pointer, length: Value,
    inner: Value, first: Value, last: Value,
) -> None:  # fmt: skip
    """The lines from number ``first`` on and before ``last``."""
    wide = V * s.lanes(out)
    with s.range(first, last) as n:
        if period:
            at, whole, width = n * length, length // wide, length % wide
            line = Line(s, out, V, period, held, wide, whole, (width > 0).to("int64"), length if held else width)
        else:
            blocks = (inner + (wide - 1)) // wide
            j = n % blocks * wide
            at, width = n // blocks * length * inner + j, inner - j
            whole = (width < wide).where(s.integer(0), length)
            line = Line(s, out, V, period, held, inner, whole, length - whole, width)
        _KINDS[kind](s, line, a + at, b + at, out + at)


@cache
def _kernel(kind: str, V: int, period: int, held: bool) -> Any:
    @in_parts
    def run(part, slot, a, b, out, length, inner, lines, of_part):
        first = part * of_part
        _lines(kind, V, period, held, a, b, out, length, inner, first, min(first + of_part, lines))

    return run


@lru_cache(256)
def _plan(kind: str, shape: tuple[int, ...], axis: int, itemsize: int) -> tuple[Any, int, tuple[int, int, int, int]]:
    """The kernel, how many parts, and what it is told: the length of a row, or of columns and how many are
    neighbours; lines; and lines of a part."""
    length, inner, outer = shape[axis], math.prod(shape[axis + 1 :]), math.prod(shape[:axis])
    lanes = vector_bytes() // itemsize
    period = inner if inner in (1, 2, 4, 8) and inner < lanes else 0
    if period:
        length *= inner
    vectors = -(-(length if period else inner) // lanes)
    V, held = vectors_of_line(vectors, period > 0)
    lines = outer if period else outer * -(-inner // (V * lanes))
    of_part = max(PART // (length if period else length * min(inner, V * lanes)), 1)
    return _kernel(kind, V, period, held), -(-lines // of_part), (length, inner, lines, of_part)


def _run(kind: str, a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    out = np.empty(a.shape, a.dtype)
    if out.size:
        kernel, parts, sizes = _plan(kind, a.shape, axis, a.itemsize)
        kernel(parts, a.reshape(-1), b.reshape(-1), out.reshape(-1), *sizes)
    return out


def softmax_forward(x: np.ndarray, axis: int) -> np.ndarray:
    return _run("softmax_forward", x, x, axis)


def softmax_backward(grad: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    return _run("softmax_backward", grad, y, axis)


def log_softmax_forward(x: np.ndarray, axis: int) -> np.ndarray:
    return _run("log_softmax_forward", x, x, axis)


def log_softmax_backward(grad: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    return _run("log_softmax_backward", grad, y, axis)
