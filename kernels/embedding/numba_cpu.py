"""Embedding, compiled.

All indices are checked first, blocks of them at once, so that the kernels may trust them.

Forward, the places are cut into parts, and their rows copied a vector at a time.

Backward, the table is cut into parts: 512 bytes of each row, and where rows are short also several ranges of
rows.  Each part goes through all indices in order and adds the rows of g to its piece of the table, so nothing
is sorted, no two threads write to one place, and each sum is that of a plain loop.  g is read once.  The table
comes from ``np.zeros``, for which the system has pages of zeros at hand: rows that no index names are not
even written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import in_parts, serial
from .._simd import Pointer, Stage, Value, simd
from . import range_error

#: Forward, elements that a part copies.
_COPIED = 16384
#: Backward, bytes of each row that a part owns; the least number of parts; and at most how many elements of g
#: make one part alone.
_COLUMNS = 512
_PARTS = 4
_ALONE = 8192


def embedding_forward(weight: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """As the reference's; see the package's docstring."""
    V, D = weight.shape
    flat = _checked("embedding", indices, V)
    y = np.empty((*indices.shape, D), weight.dtype)
    places = max(_COPIED // max(D, 1), 1)
    _gather(-(-flat.size // places), places, weight.reshape(-1), flat, D, y.reshape(-1))
    return y


def embedding_backward(
    grad: np.ndarray, indices: np.ndarray, num_embeddings: int, padding_idx: int | None
) -> np.ndarray:
    """As the reference's."""
    V, D = num_embeddings, grad.shape[-1]
    flat = _checked("embedding_backward", indices, V)
    dweight = np.zeros((V, D), grad.dtype)
    columns, ranges, width, rows = 1, 1, D, V
    if grad.size > _ALONE:
        width = _COLUMNS // grad.itemsize
        columns = -(-D // width)
        ranges = max(_PARTS // columns, 1)
        rows = -(-V // ranges)
    padding = -1 if padding_idx is None else padding_idx
    _scatter(columns * ranges, grad.reshape(-1), flat, dweight.reshape(-1), D, padding, ranges, width, rows)
    return dweight


def _checked(operation: str, indices: np.ndarray, rows: int) -> np.ndarray:
    """In int64, so that kernels are compiled for one dtype; what is beyond becomes negative, so stays out of range."""
    flat = indices.reshape(-1).astype(np.int64, copy=False)
    bad = _first_outside(flat, rows)
    if bad >= 0:
        place = tuple(map(int, np.unravel_index(bad, indices.shape)))
        raise range_error(operation, place, int(indices[place]), rows)
    return flat


@serial
def _first_outside(indices: Any, rows: int) -> int:
    """The position of the first index outside [0, rows), or -1."""
    for start in range(0, indices.size, 1024):
        outside = 0
        for i in range(start, min(start + 1024, indices.size)):
            outside |= (indices[i] < 0) | (indices[i] >= rows)
        if outside:
            i = start
            while 0 <= indices[i] < rows:
                i += 1
            return i
    return -1


@in_parts
def _gather(part: int, slot: int, places: int, weight: Any, indices: Any, D: int, y: Any) -> None:
    for i in range(part * places, min((part + 1) * places, indices.size)):
        _copy(y, i * D, weight, indices[i] * D, D)


@simd
def _copy(s: Stage, to: Pointer, at: Value, source: Pointer, start: Value, count: Value) -> None:
    to, source, lanes = to + at, source + start, s.lanes(to)
    whole = count // lanes * lanes
    with s.range(0, whole, lanes) as i:
        to.store(i, source.load(i, lanes))
    with s.when(whole < count):
        rest = s.first(count - whole, lanes)
        to.store(whole, source.load(whole, lanes, rest), rest)


@in_parts
def _scatter(
    part: int, slot: int, grad: Any, indices: Any, dweight: Any, D: int, padding: int, ranges: int, width: int,
    rows: int,
) -> None:  # fmt: skip
    """Add to ``width`` columns of ``rows`` rows of the table."""
    left, top = part // ranges * width, part % ranges * rows
    for i in range(indices.size):
        row = indices[i]
        if top <= row < top + rows and row != padding:
            _add(dweight, row * D + left, grad, i * D + left, min(width, D - left))


@simd
def _add(s: Stage, to: Pointer, at: Value, source: Pointer, start: Value, count: Value) -> None:
    to, source, lanes = to + at, source + start, s.lanes(to)
    whole = count // lanes * lanes
    with s.range(0, whole, lanes) as i:
        to.store(i, to.load(i, lanes) + source.load(i, lanes))
    with s.when(whole < count):
        rest = s.first(count - whole, lanes)
        to.store(whole, to.load(whole, lanes, rest) + source.load(whole, lanes, rest), rest)
