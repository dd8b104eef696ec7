"""Launcher of embedding.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._contracts import INTEGERS, MAX_ELEMENTS
from .._devices import device_of
from .._errors import ShapeError
from .._faults import fault_flag, watch
from .._launch import BOOLS, FLOATS, Kernel, ceil_div, empty, runtime_of
from . import range_error

_FORWARD = Kernel(__file__, "embedding_forward", T=FLOATS, INDEX=INTEGERS, VECTOR=BOOLS)
_KEYS = Kernel(__file__, "embedding_backward_keys", INDEX=INTEGERS)
_COUNT = Kernel(__file__, "embedding_backward_count")
_SCAN = Kernel(__file__, "embedding_backward_scan")
_SCATTER = Kernel(__file__, "embedding_backward_scatter")
_STARTS = Kernel(__file__, "embedding_backward_starts")
_SUM = Kernel(__file__, "embedding_backward_sum", T=FLOATS, VECTOR=BOOLS)

_THREADS = 256
#: Bits of a digit, the digits, and the keys of one block while sorting.
_BITS = 8
_DIGITS = 1 << _BITS
_TILE = 8 * _THREADS
#: Rows of one block of ``backward_sum``.
_ROWS = 8
_NO_ROW = 2**32 - 1


def embedding_forward(weight: Any, indices: Any) -> Any:
    """As the reference's; see the package's docstring."""
    V, D = weight.shape
    n = indices.size
    _check_size("embedding", n, D)
    y = empty(weight, (*indices.shape, D))
    vector = _is_vector(D, weight, y)
    pieces = max(1, D // _piece(weight.dtype, vector))
    fault = fault_flag(weight)
    kernel = _FORWARD[weight.dtype, indices.dtype, vector]
    kernel(ceil_div(n * pieces, _THREADS), _THREADS, weight, indices, y, n, V, D, fault)
    _watch(fault, "embedding", indices, V)
    return y


def embedding_backward(grad: Any, indices: Any, num_embeddings: int, padding_idx: int | None) -> Any:
    """As the reference's."""
    V, D, n = num_embeddings, grad.shape[-1], indices.size
    _check_size("embedding_backward", V, D)
    dweight = empty(grad, (V, D))
    keys = empty(grad, n, np.uint32)
    fault = fault_flag(grad)
    padding = _NO_ROW if padding_idx is None else padding_idx
    _KEYS[indices.dtype](ceil_div(n, _THREADS), _THREADS, indices, n, V, padding, keys, fault)
    _watch(fault, "embedding_backward", indices, V)
    if dweight.size:
        keys, places = _sorted(keys, V)
        starts = empty(keys, V + 1)
        _STARTS[()](ceil_div(V + 1, _THREADS), _THREADS, keys, n, V, starts)
        vector = _is_vector(D, grad, dweight)
        tiles = ceil_div(D, 32 * _piece(grad.dtype, vector))
        _SUM[grad.dtype, vector](ceil_div(V, _ROWS) * tiles, _THREADS, grad, places, starts, dweight, V, D)
    return dweight


def _sorted(keys: Any, largest: int) -> tuple[Any, Any]:
    """``keys`` in ascending order, and the place of each of them before; the order of equal keys stays."""
    n, places = keys.size, None
    tiles = ceil_div(n, _TILE)
    counts, totals = empty(keys, _DIGITS * tiles), empty(keys, _DIGITS)
    for shift in range(0, int(largest).bit_length(), _BITS):
        _COUNT[()](tiles, _THREADS, keys, n, shift, counts)
        _SCAN[()](_DIGITS if tiles else 0, _THREADS, counts, tiles, totals)
        new_keys, new_places = empty(keys, n), empty(keys, n)
        _SCATTER[()](tiles, _THREADS, keys, places, n, shift, counts, totals, new_keys, new_places)
        keys, places = new_keys, new_places
    return keys, places


def _piece(dtype: np.dtype, vector: bool) -> int:
    """Elements that one thread moves at once."""
    return 16 // dtype.itemsize if vector else 1


def _is_vector(D: int, *matrices: Any) -> bool:
    """Whether all rows of the matrices, which have D columns, start at multiples of 16 bytes."""
    runtime = runtime_of(matrices[0])
    return D * matrices[0].itemsize % 16 == 0 and all(runtime.address(matrix) % 16 == 0 for matrix in matrices)


def _check_size(operation: str, rows: int, D: int) -> None:
    if rows * D > MAX_ELEMENTS:
        raise ShapeError(
            f"{operation}: the result has {rows} x {D} = {rows * D} elements; at most {MAX_ELEMENTS} are supported"
        )


def _watch(fault: Any, operation: str, indices: Any, rows: int) -> None:
    """Have the first index out of range reported."""

    def error(position: int) -> Exception:
        place = tuple(int(p) for p in np.unravel_index(position, indices.shape))
        return range_error(operation, place, int(device_of(indices).to_host(indices)[place]), rows)

    watch(fault, error)
