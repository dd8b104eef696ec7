"""Memory that is used again once nothing refers to it any more."""

from __future__ import annotations

import math
import sys
import sysconfig
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

#: Makes an array whose contents nobody promises: ``np.empty``, or :meth:`Buffers.empty`.
Empty = Callable[[tuple[int, ...], Any], Any]

#: Where Python keeps no exact count of references, no memory is used twice.
_COUNTED = not sysconfig.get_config_var("Py_GIL_DISABLED")
#: A buffer may be so many times larger than what is put into it.
_ROOMY = 4


def _references(arrays: Any, position: int) -> int:
    return sys.getrefcount(arrays[position])


#: What :func:`_references` says of an array to which only its list refers.
_ALONE = _references([np.empty(0)], 0)


def is_alone(arrays: Any, position: int) -> bool:
    """Whether nothing but the list (or dict) refers to this array, so neither does a view of it."""
    return _COUNTED and _references(arrays, position) == _ALONE


def countable(flat: Any) -> Any:
    """``flat``, if :func:`is_alone` can be asked of it: every view must refer to it, and not to what is below it."""
    assert flat[:1].base is flat, "NumPy lets views of a view of an array refer to the array alone"
    return flat


def shaped(flat: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """The beginning of a flat array of bytes as an array of this shape and dtype."""
    return flat[: math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)


def fits(flat: Any, size: int) -> bool:
    """Whether ``size`` bytes go into ``flat`` and do not waste it."""
    return bool(size <= flat.size <= _ROOMY * max(size, 1))


class Buffers:
    """Arrays in memory that is handed out again when no array uses it any more.

    Each buffer is one flat array of bytes; what is handed out is a view of it, and every view of a
    view refers to the flat array too.  So a buffer is free exactly when the list below holds the
    only reference to it.  Whoever keeps a batch, a part of one or a saved tensor keeps its buffer
    out of use, and has to do nothing for it.

    Args:
        make: gives a new flat uint8 array of so many bytes.
        keep: how many buffers are kept for later at most.
    """

    def __init__(self, make: Callable[[int], Any], keep: int) -> None:
        self._make, self._keep = make, keep
        self._flat: list[Any] = []
        self._lock = threading.Lock()
        self.made = 0  #: how many buffers were ever made

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array of this shape and dtype; its contents are whatever was there."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with self._lock:  # until the new view counts as a reference
            flat = self._free_one(size)
            return shaped(self._new_one(size) if flat is None else flat, shape, dtype)

    def _free_one(self, size: int) -> Any:
        for position in range(len(self._flat)):
            if is_alone(self._flat, position) and fits(self._flat[position], size):
                return self._flat[position]
        return None

    def _new_one(self, size: int) -> Any:
        flat = countable(self._make(max(size, 1)))
        self.made += 1
        if len(self._flat) >= self._keep:  # one that is free and did not fit makes room
            unfit = next((p for p in range(len(self._flat)) if is_alone(self._flat, p)), None)
            if unfit is not None:
                del self._flat[unfit]
        if len(self._flat) < self._keep:
            self._flat.append(flat)
        return flat

    def owns(self, array: Any) -> bool:
        """Whether ``array`` lies in a buffer that is kept here."""
        base = array.base
        return any(flat is base for flat in self._flat)
