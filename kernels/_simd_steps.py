"""Lists of arrays in one launch: what the optimizer steps of backend ``numba`` share.

A step walks over a few lists of equal length (the parameters, their gradients, what the optimizer remembers),
reads each element of each list once, and writes back what has changed.  All elements of a list, one array
after the other, are cut into parts of :data:`PART` elements; a part is some *pieces*, each within one array.
Where the cuts are depends on the shapes alone and is kept, so a step finds out the addresses and nothing else.

An operation writes down its update for one vector of elements and hands it to :func:`update_part`.  Products
and sums are rounded one by one, as in the reference; so an element's bits do not depend on the cuts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ._simd import Pointer, Stage, Value

Arrays = Sequence[np.ndarray]

#: Elements of a part.
PART = 4096
#: At most so many elements, of all lists together, make one part alone: waking a second thread takes longer.
ALONE = 65536
#: Arrays are cut at multiples of this: whole cache lines from their start.
GRAIN = 64
#: Where, counted in 8 bytes, NumPy's array objects hold the address of their elements: it is the first field
#: after the header that all objects have (``PyArrayObject``, part of NumPy's binary interface).
_ADDRESS = object.__basicsize__ // 8
_LIKE = {np.dtype(dtype): np.empty(0, dtype) for dtype in (np.float32, np.float64)}


def launch(kernel: Callable[..., Any], lists: Sequence[Arrays], *numbers: float) -> None:
    """Call ``kernel(parts, like, objects, table, numbers)``, whose parts call :func:`update_part` with the same.

    Args:
        lists: lists of C-contiguous arrays of one dtype, the first the parameters; array i of each list has
            the size of parameter i.
        numbers: what all elements share.
    """
    params = lists[0]
    parts, table = _table(tuple([param.size for param in params]), len(lists))
    if parts:
        # Where an object is costs a fifth of what it costs to ask NumPy where its elements are.
        ids = map(id, itertools.chain.from_iterable(zip(*lists, strict=True)))
        objects = np.fromiter(ids, np.int64, len(lists) * len(params))
        kernel(parts, _LIKE[params[0].dtype], objects, table, np.array(numbers))


@lru_cache(maxsize=256)
def _table(sizes: tuple[int, ...], lists: int) -> tuple[int, np.ndarray]:
    """The cuts of ``lists`` lists of arrays of these sizes.

    Returns:
        the number of parts, and int64: where in the table the pieces of each part begin, and where the last ends;
        for each piece the number of its array, its first element and its size.
    """
    total = sum(sizes)
    length = PART if total * lists > ALONE else total
    pieces: list[tuple[int, int, int]] = []
    parts = []
    room = 0
    for array, size in enumerate(sizes):
        start = 0
        while start < size:
            if room <= 0:
                parts.append(len(pieces))
                room += length
            stop = min(start + -(-room // GRAIN) * GRAIN, size)
            pieces.append((array, start, stop - start))
            room -= stop - start
            start = stop
    header = len(parts) + 1
    begins = [header + 3 * piece for piece in (*parts, len(pieces))]
    return len(parts), np.array([*begins, *itertools.chain.from_iterable(pieces)], np.int64)


def update_part(
    s: Stage,
    like: Pointer,
    objects: Pointer,
    table: Pointer,
    part: Value,
    numbers: Pointer,
    update: Callable[..., tuple[Value | None, ...]],
    lists: int,
    count: int,
) -> None:
    """Write the instructions that update part number ``part``; for a function under ``@simd``.

    Args:
        like: an array of the lists' dtype.
        objects: where the array objects are: the first of each list, the second of each list, …
        table: what ``_table`` gives.
        numbers: what all elements share, in float64; they are converted to the arrays' dtype.
        update: takes a vector of each list, then the numbers; returns the vectors to be written, in the order
            of the lists, None for what stays.
        lists, count: how many lists and numbers there are.
    """
    lanes = s.lanes(like)
    shared = [s.splat(numbers[k].to(like.dtype), lanes) for k in range(count)]

    def update_vector(arrays: list[Pointer], i: Value, mask: Value | None = None) -> None:
        new = update(*(array.load(i, lanes, mask) for array in arrays), *shared)
        for array, vector in zip(arrays, new, strict=True):
            if vector is not None:
                array.store(i, vector, mask)

    with s.range(table[part], table[part + 1], 3) as place:
        number, start, size = (table[place + k] for k in range(3))
        arrays = []
        for k in range(lists):
            fields = s.pointer(objects[number * lists + k], objects)
            arrays.append(s.pointer(fields[_ADDRESS], like) + start)
        whole = size // lanes * lanes
        with s.range(0, whole, lanes) as i:
            update_vector(arrays, i)
        with s.when(whole < size):
            update_vector(arrays, whole, s.first(size - whole, lanes))
