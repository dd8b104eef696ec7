"""The dtypes of tensors: NumPy's, and bfloat16, which the package ``ml_dtypes`` adds to NumPy and CuPy 14 takes too.

bfloat16 and float16, the *halves*, are for memory: 2 bytes a number.  What is computed with them is computed in float32
and rounded once, to nearest, ties to even.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

FLOAT16 = np.dtype(np.float16)
BFLOAT16 = np.dtype(bfloat16)
HALVES = (FLOAT16, BFLOAT16)
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def kind_of(dtype: np.dtype) -> str:
    """NumPy's letter for the kind of a dtype; ``"f"`` for bfloat16 too, of which NumPy only knows the size."""
    kind = dtype.kind
    return "f" if kind == "V" and dtype == BFLOAT16 else kind


def is_half(dtype: np.dtype) -> bool:
    """Whether ``dtype`` is one of the halves."""
    return dtype.itemsize == 2 and dtype in HALVES


def wide(dtype: np.dtype) -> np.dtype:
    """The dtype in which numbers of ``dtype`` are computed with: float32 for the halves, else itself."""
    return FLOATS[0] if is_half(dtype) else dtype


def halves_in_float32(rounded: slice = slice(None)) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for functions on arrays of one floating dtype: halves are computed with in float32.

    Args:
        rounded: which of several results are rounded to the dtype of the arguments; the others stay float32.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        names = tuple(inspect.signature(function).parameters)
        place = names.index("out") if "out" in names else len(names)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            dtype = arguments[0].dtype
            if not is_half(dtype):
                return function(*arguments)
            widened = [
                None if i == place else a.astype(np.float32) if getattr(a, "dtype", None) == dtype else a
                for i, a in enumerate(arguments)
            ]
            found = function(*widened)
            with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite
                if isinstance(found, tuple):
                    places = range(len(found))[rounded]
                    return tuple(r.astype(dtype) if i in places and r is not None else r for i, r in enumerate(found))
                if place < len(arguments) and arguments[place] is not None:
                    arguments[place][...] = found
                    return arguments[place]
                return found.astype(dtype)

        return call

    return decorate
