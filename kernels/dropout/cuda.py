"""Launcher of dropout.cu."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from .._devices import device_of
from .._launch import FLOATS, Kernel, ceil_div, empty

_VECTOR = Kernel(__file__, "dropout_forward_v1_vector", T=FLOATS)
_AHEAD = Kernel(__file__, "dropout_forward_v2_ahead", T=FLOATS)
_PHILOX = Kernel(__file__, "dropout_philox_v1_vector")
_THREADS = 256
_PER_BLOCK = 4 * _THREADS
#: From so many elements on, v2: that makes 1056 blocks, eight for each of 132 multiprocessors.  By the model of
#: docs/kernels/activation.md, not by measurement.
_LARGE = 1056 * 2 * _PER_BLOCK


def _run(ahead: bool, x: Any, p: float, seed: int, offset: Any) -> Any:
    if p == 0:
        return x.copy()
    if p == 1:
        return device_of(x).array_module.zeros_like(x)
    y = empty(x, x.shape)
    last_dropped = math.ceil(p * 2**32) - 1
    kernel, per_block = (_AHEAD, 2 * _PER_BLOCK) if ahead else (_VECTOR, _PER_BLOCK)
    blocks = ceil_div(x.size, per_block)
    kernel[x.dtype](blocks, _THREADS, x, y, x.size, last_dropped, 1 / (1 - p), seed, offset)
    return y


def dropout_forward(x: Any, p: float, seed: int, offset: Any) -> Any:
    """As the reference's; see the package's docstring."""
    return _run(x.size >= _LARGE, x, p, seed, offset)


def philox(seed: int, offset: Any, n: int, first_block: int) -> Any:
    """As the reference's; see the package's docstring."""
    words = empty(offset, n, np.uint32)
    _PHILOX[()](ceil_div(n, _PER_BLOCK), _THREADS, words, n, seed, offset, first_block)
    return words


VERSIONS = {"dropout_forward": {"v1_vector": partial(_run, False), "v2_ahead": partial(_run, True)}}
