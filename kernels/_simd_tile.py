"""Tiles of sums in registers, and the copies that feed them: what matrix products and convolutions share.

A product y[i, n] += a[j, i] b[j, n] runs at the processor's speed when a tile of y stays in registers while
j runs: of V vectors of b and R numbers of a each is used R or V times, so R V multiplications need R + V
loads.  :class:`Tile` is that tile, with two ways to add to it:

    outer    y[i, n] += a[i] b[n]    a's numbers, each in all lanes, times vectors of b
    dot      y[i, k] += a[i] · b[k]  vectors of both along the sum, whose lanes are added at the end

The layout "panel" has what one step needs side by side: (steps, width).  Source: Goto and van de Geijn,
"Anatomy of high-performance matrix multiplication", 2008.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ._simd import Number, Pointer, Stage, Value, simd, vector_registers


class Tile:
    """R times V sums that live in registers; row i begins with ``initial(i)`` in all lanes, or 0."""

    def __init__(self, s: Stage, R: int, V: int, like: Pointer, initial: Callable[[int], Value] | None = None) -> None:
        self.s, self.lanes = s, s.lanes(like)
        starts = [s.splat(initial(i), self.lanes) if initial else s.zero(like, self.lanes) for i in range(R)]
        self.sums = [[s.variable(start) for _ in range(V)] for start in starts]

    def outer(self, a: Callable[[int], Value], b: Sequence[Value]) -> None:
        """Add a(i) b[v] to sum (i, v); each number is loaded where it is used."""
        for i, row in enumerate(self.sums):
            of_a = self.s.splat(a(i), self.lanes)
            for sum_, of_b in zip(row, b, strict=True):
                sum_.value = self.s.fma(of_a, of_b, sum_.value)

    def dot(self, a: Sequence[Value], b: Sequence[Value]) -> None:
        """Add a[i] b[k], lane by lane, to sum (i, k)."""
        for row, of_a in zip(self.sums, a, strict=True):
            for sum_, of_b in zip(row, b, strict=True):
                sum_.value = self.s.fma(of_a, of_b, sum_.value)


def totals(vectors: list[Value]) -> Value:
    """One vector, whose lane l is the sum of all lanes of ``vectors[l]``: halves of pairs are added, then quarters, …

    There may be fewer vectors than lanes, which leaves zeros.
    """
    s, lanes = vectors[0].stage, vectors[0].lanes
    zero = s.splat(s.like(0.0, vectors[0].lane(0)), lanes)
    rows, half = vectors + [zero] * (lanes - len(vectors)), lanes // 2
    while half:
        upper = [i if not i & half else lanes + i - half for i in range(lanes)]
        lower = [i + half if not i & half else lanes + i for i in range(lanes)]
        rows = [rows[i].shuffle(upper, rows[i + half]) + rows[i].shuffle(lower, rows[i + half]) for i in range(half)]
        half //= 2
    return rows[0]


def registers_fit(R: int, V: int) -> bool:
    """Whether a tile and what a step loads stay in registers."""
    return R * V + V + 1 <= vector_registers()


def transpose(rows: list[Value]) -> list[Value]:
    """The columns of a square of vectors: log2(lanes) rounds that exchange halves, quarters, …"""
    lanes, half = len(rows), len(rows) // 2
    while half:
        first = [i for i in range(lanes) if not i & half]
        upper = [i if not i & half else lanes + i - half for i in range(lanes)]
        lower = [i + half if not i & half else lanes + i for i in range(lanes)]
        new = list(rows)
        for i in first:
            new[i] = rows[i].shuffle(upper, rows[i + half])
            new[i + half] = rows[i].shuffle(lower, rows[i + half])
        rows, half = new, half // 2
    return rows


@simd
def pack_columns(
    s: Stage, a: Pointer, at: Value, pitch: Value, rows: Value, steps: Value, panel: Pointer, to: Value,
    panel_pitch: Value, width: int,
) -> None:  # fmt: skip
    """The panel of a[i, j], i < rows and j < steps, whose rows are ``pitch`` apart: panel[j, i], zero from rows on."""
    a, lanes = a + at, s.lanes(a)
    panel_of_columns(
        s, lambda i, j, here: a.load(pitch * i + j, lanes, here), rows, steps, panel + to, panel_pitch, width
    )


def panel_of_columns(
    s: Stage, load: Callable[[int, Value, Value | None], Value], rows: Value, steps: Value, panel: Pointer,
    pitch: Number, width: int,
) -> None:  # fmt: skip
    """The same of what ``load(i, j, mask)`` gives: row i from element j on, zeros where a mask does not hold."""
    lanes = s.lanes(panel)
    for start in range(0, width, lanes):
        used = min(lanes, width - start)
        full = None if used == lanes else s.first(used, lanes)
        unchecked = s.variable(s.integer(0))  # the steps of whole squares
        with s.when(rows >= start + used):
            unchecked.value = steps - steps % lanes
        with s.range(0, unchecked.value, lanes) as j:
            vectors = [load(start + i, j, None) if i < used else s.zero(panel, lanes) for i in range(lanes)]
            for i, column in enumerate(transpose(vectors)):
                panel.store((j + i) * pitch + start, column, full)
        with s.range(unchecked.value, steps, lanes) as j:
            here, vectors = s.first(steps - j, lanes), []
            for i in range(lanes):
                exists = s.splat(rows > start + i, lanes) & here
                vectors.append(load(start + i, j, exists) if i < used else s.zero(panel, lanes))
            for i, column in enumerate(transpose(vectors)):
                with s.when(j + i < steps):
                    panel.store((j + i) * pitch + start, column, full)


@simd
def pack_rows(
    s: Stage, a: Pointer, at: Value, pitch: Value, columns: Value, steps: Value, panel: Pointer, to: Value, width: int
) -> None:
    """The panel of a[j, i], i < columns and j < steps, whose rows are ``pitch`` apart: panel[j, i], zero beyond."""
    lanes = s.lanes(a)
    a, panel = a + at, panel + to
    with s.range(0, steps) as j:
        for start in range(0, width, lanes):
            used = min(lanes, width - start)
            row = a.load(j * pitch + start, lanes, s.first(columns - start, lanes))
            panel.store(j * width + start, row, None if used == lanes else s.first(used, lanes))
