"""Arrays with every kind of strides, and a watch on arrays that must not change.

Nothing here assumes NumPy: the functions work on the arrays of every device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from rawgrad.kernels._devices import device_of
from rawgrad.kernels._dtypes import kind_of


def _contiguous(array: Any) -> Any:
    return device_of(array).array_module.ascontiguousarray(array).reshape(array.shape)


def _channels_last(array: Any) -> Any:
    """Axis 1 varies fastest in memory."""
    if array.ndim < 3:
        return _contiguous(array.T).T
    module = device_of(array).array_module
    return module.moveaxis(_contiguous(module.moveaxis(array, 1, -1)), -1, 1)


def _negative(array: Any) -> Any:
    """Every stride is negative."""
    backwards = (..., *(slice(None, None, -1) for _ in range(array.ndim)))
    return _contiguous(array[backwards])[backwards]


def _step(array: Any) -> Any:
    """Every second element of a larger array, whose other elements are NaN (or -1)."""
    filler = np.nan if kind_of(array.dtype) == "f" else array.dtype.type(-1 if array.dtype.kind == "i" else 1)
    larger = device_of(array).array_module.full(tuple(2 * n + 1 for n in array.shape), filler, array.dtype)
    view = larger[(..., *(slice(1, None, 2) for _ in range(array.ndim)))]
    view[...] = array
    return view


#: name -> a function that gives an array of equal values with such strides.
LAYOUTS = {"C": _contiguous, "channels_last": _channels_last, "negative": _negative, "step": _step}


@contextmanager
def untouched(*arrays: Any) -> Iterator[None]:
    """The bytes of ``arrays`` (None is skipped) must be the same at the end of the block."""

    def contents() -> list[bytes]:
        return [device_of(a).to_host(a).tobytes() for a in arrays if a is not None]

    before = contents()
    yield
    assert contents() == before, "the kernel wrote into its input"
