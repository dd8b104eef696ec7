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
from numba import prange

from .._jit import parallel, serial
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
    y = np.empty((*indices.shape, D), weight.dtype)
    bad = _gather(weight.reshape(-1), _flat(indices), V, D, y.reshape(-1))
    if bad >= 0:
        raise _range_error("embedding", indices, bad, V)
    return y


def embedding_backward(
    grad: np.ndarray, indices: np.ndarray, num_embeddings: int, padding_idx: int | None
) -> np.ndarray:
    """As the reference's."""
    V, D = num_embeddings, grad.shape[-1]
    dweight = np.zeros((V, D), grad.dtype)
    columns, width, ranges = 1, D, 1
    if grad.size > _ALONE:
        width = _COLUMNS // grad.itemsize
        columns = -(-D // width)
        ranges = max(_PARTS // columns, 1)
    padding = -1 if padding_idx is None else padding_idx
    bad = _scatter(grad.reshape(-1), _flat(indices), dweight.reshape(-1), V, D, padding, columns, width, ranges)
    if bad >= 0:
        raise _range_error("embedding_backward", indices, bad, V)
    return dweight


def _flat(indices: np.ndarray) -> np.ndarray:
    """In int64, so that kernels are compiled for one dtype; what is beyond becomes negative, so stays out of range."""
    return indices.reshape(-1).astype(np.int64, copy=False)


def _range_error(operation: str, indices: np.ndarray, position: int, rows: int) -> Exception:
    place = tuple(map(int, np.unravel_index(position, indices.shape)))
    return range_error(operation, place, int(indices[place]), rows)


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


@parallel
def _gather(weight: Any, indices: Any, V: int, D: int, y: Any) -> int:
    bad = _first_outside(indices, V)
    if bad >= 0:
        return bad
    n = indices.size
    places = max(_COPIED // max(D, 1), 1)
    if n <= places:
        _gather_part(weight, indices, D, y, 0, n)
    else:
        for part in prange(-(-n // places)):
            _gather_part(weight, indices, D, y, part * places, min((part + 1) * places, n))
    return -1


@serial
def _gather_part(weight: Any, indices: Any, D: int, y: Any, start: int, stop: int) -> None:
    for i in range(start, stop):
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


@parallel
def _scatter(
    grad: Any, indices: Any, dweight: Any, V: int, D: int, padding: int, columns: int, width: int, ranges: int
) -> int:
    bad = _first_outside(indices, V)
    if bad >= 0:
        return bad
    if columns * ranges == 1:
        _scatter_part(grad, indices, dweight, D, padding, 0, D, 0, V)
    else:
        rows = -(-V // ranges)
        for part in prange(columns * ranges):
            left, top = part // ranges * width, part % ranges * rows
            _scatter_part(grad, indices, dweight, D, padding, left, min(width, D - left), top, top + rows)
    return -1


@serial
def _scatter_part(
    grad: Any, indices: Any, dweight: Any, D: int, padding: int, left: int, width: int, top: int, bottom: int
) -> None:
    for i in range(indices.size):
        row = indices[i]
        if top <= row < bottom and row != padding:
            _add(dweight, row * D + left, grad, i * D + left, width)


@simd
def _add(s: Stage, to: Pointer, at: Value, source: Pointer, start: Value, count: Value) -> None:
    to, source, lanes = to + at, source + start, s.lanes(to)
    whole = count // lanes * lanes
    with s.range(0, whole, lanes) as i:
        to.store(i, to.load(i, lanes) + source.load(i, lanes))
    with s.when(whole < count):
        rest = s.first(count - whole, lanes)
        to.store(whole, to.load(whole, lanes, rest) + source.load(whole, lanes, rest), rest)
