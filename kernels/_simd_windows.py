"""Windows over planes, by vectors of neighbouring windows: what max_pool2d and avg_pool2d share.

One lane is one window.  Lane by lane, tap (r, s) of the windows q, q + 1, ... of a row meets every ``step``-th
element of a row of the input.  Of step 1 that is one load; of step 2 it is every other lane of two loads, and the
lanes between them are the next tap's (:class:`Row`).  Of larger steps, and where rows hold few windows, lanes are
filled from all windows of all planes, and each gathers its own (:class:`Scattered`).

Sizes arrive in one array, in the order of :func:`sizes`, or as Python's integers where the code is written for
one kind of window: then taps are straight code.  Vectors of windows whose taps all lie inside the input are
computed without masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._simd import Number, Pointer, Stage, Value

#: Elements, of the larger of input and output, that make a part; twice as many are no work for a second thread.
PART = 16384
#: Called with r S + s, the elements under that tap, and a mask of those that exist (None: all that are wanted).
Visit = Callable[[Number, Value, Value | None], None]


def sizes(g: Any, rows: int, least: int = 1) -> np.ndarray:
    """What kernels are told about the geometry ``g`` and about parts.

    Args:
        rows: the work on a plane is made of so many rows, which are independent of each other.
        least: a part has at least so many rows.

    Returns:
        H W R S P Q sh sw ph pw dh dw, then rows of all planes, rows of a part, rows of a plane; int64.
    """
    planes, work = g.N * g.C, max(g.H * g.W, g.P * g.Q)
    part = planes * rows if planes * work <= 2 * PART else PART * rows // work
    # the stride of a single window says nothing, and may be of any size; so may the dilation of a single tap
    stride = [step if count > 1 else 1 for step, count in zip(g.stride, (g.P, g.Q), strict=True)]
    dilation = [d if taps > 1 else 1 for d, taps in zip(getattr(g, "dilation", (1, 1)), (g.R, g.S), strict=True)]
    shape = [g.H, g.W, g.R, g.S, g.P, g.Q, *stride, *g.padding, *dilation]
    return np.array([*shape, planes * rows, max(part, least, 1), rows], np.int64)


def parts_of(sizes: np.ndarray) -> int:
    """How many parts that makes."""
    return int(-(-sizes[12] // sizes[13]))


class Window:
    """The sizes, as values of the program being written or as integers where they are known.

    Args:
        sizes: of :func:`sizes`.
        R, S: the window, which has no dilation and equal strides; 0 where the program reads all that.
        step: the horizontal stride; 0 where the program reads it.
    """

    def __init__(self, sizes: Pointer, R: int, S: int, step: int) -> None:
        H, W, rows, columns, P, Q, sh, sw, ph, pw, dh, dw = (sizes[k] for k in range(12))
        self.H, self.W, self.P, self.Q, self.ph, self.pw = H, W, P, Q, ph, pw
        self.R: Any = R or rows
        self.S: Any = S or columns
        self.sh: Any = step if R else sh
        self.sw: Any = step or sw
        self.dh: Any = 1 if R else dh
        self.dw: Any = 1 if R else dw


def repeat(s: Stage, count: Number, body: Callable[[Number], None], backwards: bool) -> None:
    """``body(k)`` for k = 0, 1, ... below ``count``: straight code where the count is known, else a loop."""
    if isinstance(count, int):
        for k in reversed(range(count)) if backwards else range(count):
            body(k)
    else:
        with s.range(0, count) as i:
            body(count - 1 - i if backwards else i)


def narrow(value: Number) -> Any:
    return value.to("int32") if isinstance(value, Value) else value


def inside(s: Stage, i: Value, size: Value, lanes: int, step: int = 1) -> Value:
    """A mask of the lanes k with 0 <= i + step k < size."""
    return size.to("int32").above(i.to("int32") + s.counting(lanes, 32) * step)  # without a sign, below 0 is large


def in_chunks(s: Stage, count: Number, lanes: int, full: Callable[[Value], Value], body: Callable[..., None]) -> None:
    """``body(i, edge)`` for i = 0, lanes, ... below ``count``; ``edge`` is False where ``full(i)`` holds."""
    with s.range(0, count, lanes) as i:
        is_full = full(i)
        with s.when(is_full):
            body(i, False)
        with s.when(is_full.equals(0)):
            body(i, True)


def over_planes(s: Stage, start: Value, stop: Value, rows: Value, body: Callable[[Value, Value], None]) -> None:
    """``body(plane, row)`` for rows ``start`` to ``stop`` - 1, counted through all planes of so many ``rows``."""
    plane, row = s.variable(s.integer(start) // rows), s.variable(s.integer(start) % rows)
    with s.range(start, stop):
        body(plane.value, row.value)
        row.value = row.value + 1
        with s.when(row.value.equals(rows)):
            row.value, plane.value = s.integer(0), plane.value + 1


def corners(s: Stage, w: Window, p: Value, q: Value, lanes: int) -> tuple[Value, Value]:
    """In which row, and in the lanes in which columns, the windows q, q + 1, ... of row p begin."""
    return (p * w.sh - w.ph).to("int32"), (q * w.sw - w.pw).to("int32") + s.counting(lanes, 32) * narrow(w.sw)


class Row:
    """Windows q, q + 1, ... of row p, whose horizontal stride is known to be 1 or 2.

    Args:
        edge: whether taps may lie outside the input, and windows not exist; else neither is so.
        within: whether at least no tap of a window that exists lies outside.
    """

    def __init__(self, s: Stage, w: Window, p: Value, q: Value, lanes: int, edge: bool, within: bool) -> None:
        self.s, self.w, self.p, self.q, self.lanes, self.edge, self.within = s, w, p, q, lanes, edge, within
        self.exist = inside(s, q, w.Q, lanes) if edge else None
        self.top, self.left = corners(s, w, p, q, lanes)
        # of known taps here, once for all rows of the window
        self._masks = {tap: self._masks_of(tap) for tap in range(w.S)} if isinstance(w.S, int) else {}

    def taps(self, x: Pointer, visit: Visit, backwards: bool = False) -> None:
        """``visit`` all taps of the windows of plane ``x``, from the first or from the last one on."""
        s, w = self.s, self.w

        def row(r: Number) -> None:
            h = self.p * w.sh + r * w.dh - w.ph
            loaded: dict[int, Any] = {}

            def column(tap: Number) -> None:
                visit(r * w.S + tap, *self._column(x + h * w.W, tap, loaded))

            if self.within:
                repeat(s, w.S, column, backwards)
            else:
                with s.when(w.H.above(h)):
                    repeat(s, w.S, column, backwards)

        repeat(s, w.R, row, backwards)

    def _place(self, tap: Number) -> Value:
        """The column under tap ``tap`` of window q."""
        return self.q * self.w.sw + tap * self.w.dw - self.w.pw

    def _masks_of(self, tap: Number) -> list[Value | None]:
        """Under which windows the tap exists, and which elements of the two loads from there on do."""
        if not self.edge:
            return [None] * 3
        s, lanes, place, W = self.s, self.lanes, self._place(tap), self.w.W
        valid = None if self.within else inside(s, place, W, lanes, self.w.sw)
        return [valid, inside(s, place, W, lanes), inside(s, place + lanes, W, lanes)]

    def _column(self, row: Pointer, tap: Number, loaded: dict[int, Any]) -> tuple[Value, Value | None]:
        lanes = self.lanes
        valid, low, high = self._masks[tap] if isinstance(tap, int) else self._masks_of(tap)
        if self.w.sw == 1:
            return row.load(self._place(tap), lanes, low), valid

        def pair(tap: Number, low: Value | None, high: Value | None) -> tuple[Value, Value]:
            place = self._place(tap)
            return row.load(place, lanes, low), row.load(place + lanes, lanes, high)

        if not isinstance(tap, int):
            even, more = pair(tap, low, high)
            return even.shuffle(list(range(0, 2 * lanes, 2)), more), valid
        first = tap - tap % 2
        if first not in loaded:
            loaded[first] = pair(first, *self._masks[first][1:])
        even, more = loaded[first]
        return even.shuffle(list(range(tap % 2, 2 * lanes, 2)), more), valid


def row_of_windows(s: Stage, w: Window, p: Value, lanes: int, body: Callable[[Row], None], within: bool) -> None:
    """``body(windows)`` for all windows of row ``p``."""

    def full(q: Value) -> Value:
        """No load reaches beyond the row."""
        last_tap = (w.S - 1) // w.sw * w.sw if isinstance(w.S, int) else (w.S - 1) * w.dw
        return (q * w.sw >= w.pw) & (q + lanes <= w.Q) & ((q + lanes) * w.sw + last_tap - w.pw <= w.W)

    in_chunks(s, w.Q, lanes, full, lambda q, edge: body(Row(s, w, p, q, lanes, edge, within)))


class Scattered:
    """Windows n, n + 1, ... of all planes, those from ``stop`` on do not exist; the face of :class:`Row`."""

    def __init__(self, s: Stage, w: Window, n: Value, stop: Value, lanes: int) -> None:
        self.s, self.w, self.exist = s, w, s.first(stop - n, lanes)

        def divided(a: Value, b: Value) -> Value:
            return (a.to("float64") / b.to("float64")).to("int32")  # exact below 2^31

        number = n.to("int32") + s.counting(lanes, 32)
        row = divided(number, w.Q)
        plane = divided(row, w.P)
        self.top = (row - plane * w.P.to("int32")) * narrow(w.sh) - narrow(w.ph)
        self.left = (number - row * w.Q.to("int32")) * narrow(w.sw) - narrow(w.pw)
        self._corner = (plane * w.H.to("int32") + self.top) * w.W.to("int32") + self.left

    def taps(self, x: Pointer, visit: Visit, backwards: bool = False) -> None:
        """``visit`` all taps, from the first or from the last one on."""
        s, w = self.s, self.w

        def row(r: Number) -> None:
            below = narrow(r * w.dh)
            rows = self.exist & w.H.to("int32").above(self.top + below)
            line = self._corner + below * w.W.to("int32")

            def column(tap: Number) -> None:
                beside = narrow(tap * w.dw)
                valid = rows & w.W.to("int32").above(self.left + beside)
                visit(r * w.S + tap, x.gather(line + beside, valid), valid)

            repeat(s, w.S, column, backwards)

        repeat(s, w.R, row, backwards)


def by_step(
    s: Stage,
    w: Window,
    i: Value,
    lanes: int,
    dx: Pointer,
    load: Callable[[Value, Value, Value | None], Any],
    tap: Callable[[Any, int], Value],
    ascending: bool,
) -> None:
    """Write as many rows of the gradient as windows are apart, 1 or 2, each element once.

    With t the stride, h + ph = t i + e and w + pw = t j + f, the element (h, w) lies under tap (r, s) of window
    (i - (r - e)/t, j - (s - f)/t) for all r that leave the rest e by t, and s that leave f.  So a few vectors of
    windows give t rows of t vectors of elements; of those in a row, lanes take turns.

    Args:
        i: which rows.
        dx: a plane.
        load: from p, the first q and a mask of windows that exist (None: all, whole inside the input), whatever
            ``tap`` needs of these windows.
        tap: what they give to the elements under their tap of this code.
        ascending: add in the order of the taps, else in that of the windows.
    """
    R, S, t = w.R, w.S, w.sw
    assert isinstance(R, int)
    assert isinstance(S, int)
    assert isinstance(t, int)
    above, before = (R - 1) // t, (S - 1) // t  # so many more windows
    turns = [k // t + lanes * (k % t) for k in range(t * lanes)]

    def full(j: Value) -> Value:
        """All windows in question exist and lie inside, and all elements exist."""
        first, last, rows_end = (j - before) * t, (j + lanes - 1) * t + max(S, t), i * t + max(R, t)
        rows = ((i - above) * t >= w.ph) & (rows_end - w.ph <= w.H) & (i < w.P)
        return rows & (first >= w.pw) & (last - w.pw <= w.W) & (j + lanes <= w.Q)

    def body(j: Value, edge: bool) -> None:
        windows = {}
        for a in range(above + 1):
            for b in range(before + 1):
                columns = w.P.above(i - a).where(w.Q, 0)
                windows[a, b] = load(i - a, j - b, inside(s, j - b, columns, lanes) if edge else None)
        left = j * t - w.pw
        masks = [inside(s, left + k * lanes, w.W, lanes) if edge else None for k in range(t)]
        for e in range(t):
            sums = []
            for f in range(t):
                sum_ = s.zero(dx, lanes)
                codes = [(r, c) for r in range(e, R, t) for c in range(f, S, t)]
                for r, c in codes if ascending else reversed(codes):
                    sum_ = sum_ + tap(windows[(r - e) // t, (c - f) // t], r * S + c)
                sums.append(sum_)
            h = i * t + e - w.ph
            row = dx + h * w.W
            with s.when(w.H.above(h)):
                for k, mask in enumerate(masks):
                    row.store(left + k * lanes, sums[0].shuffle(turns[k * lanes : (k + 1) * lanes], sums[-1]), mask)

    in_chunks(s, (w.W + w.pw + t - 1) // t, lanes, full, body)
