"""Launcher of dropout.cu."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._devices import device_of
from .._launch import FLOATS, Kernel, ceil_div, empty

_DROPOUT = Kernel(__file__, "dropout_forward_v1_vector", T=FLOATS)
_PHILOX = Kernel(__file__, "dropout_philox_v1_vector")
_THREADS = 256
_PER_BLOCK = 4 * _THREADS


def dropout_forward(x: Any, p: float, seed: int, offset: Any) -> Any:
    """As the reference's; see the package's docstring."""
    if p == 0:
        return x.copy()
    if p == 1:
        return device_of(x).array_module.zeros_like(x)
    y = empty(x, x.shape)
    last_dropped = math.ceil(p * 2**32) - 1
    blocks = ceil_div(x.size, _PER_BLOCK)
    _DROPOUT[x.dtype](blocks, _THREADS, x, y, x.size, last_dropped, 1 / (1 - p), seed, offset)
    return y


def philox(seed: int, offset: Any, n: int, first_block: int) -> Any:
    """As the reference's; see the package's docstring."""
    words = empty(offset, n, np.uint32)
    _PHILOX[()](ceil_div(n, _PER_BLOCK), _THREADS, words, n, seed, offset, first_block)
    return words
