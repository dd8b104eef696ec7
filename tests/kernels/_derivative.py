"""Derivatives of the tests' own definitions, exact to rounding and independent of any kernel.

Source: Squire and Trapp, "Using complex variables to estimate derivatives of real functions", 1998.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_STEP = 1e-20


def complex_step(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, grad: np.ndarray) -> np.ndarray:
    """The gradient of ``sum(grad * function(x))`` by x, one element of x after the other.

    ``function`` must be analytic as written: no abs, maximum or comparison of its argument.
    """
    result = np.empty(x.shape, x.dtype)
    for index in np.ndindex(x.shape):
        moved = x.astype(np.result_type(x.dtype, np.complex64))
        moved[index] += 1j * _STEP
        result[index] = (np.asarray(function(moved)).imag / x.dtype.type(_STEP) * grad).sum(dtype=x.dtype)
    return result
