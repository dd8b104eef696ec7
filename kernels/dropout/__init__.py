"""Dropout by counter-based random numbers.

Legend: x the input of n elements, numbered i = 0 .. n-1 in C order whatever its strides; p the
probability of dropping an element; (seed, offset) two 64-bit integers that key the mask.

Random words: Philox4x32 with 10 rounds turns a key and a counter into four 32-bit words. Word
i mod 4 of block i div 4 belongs to element i::

    key     = (seed mod 2^32, seed div 2^32)
    counter = (i div 4 mod 2^32, i div 4 div 2^32, offset mod 2^32, offset div 2^32)

    round:  (c0, c1, c2, c3) <- (hi(B c2) ^ c1 ^ k0,  lo(B c2),  hi(A c0) ^ c3 ^ k1,  lo(A c0))
            A = D2511F53, B = CD9E8D57;  hi, lo: the halves of the 64-bit product
            between rounds:  k0 += 9E3779B9, k1 += BB67AE85  (mod 2^32)

Forward::

    y[i] = x[i] / (1 - p)   where word[i] >= ceil(p 2^32), else 0

So each element is kept with probability 1 - p (to 2^-32), and E[y] = x. A dropped element gives 0,
whatever it was; p = 0 keeps all, p = 1 drops all.

Backward: the same function of dL/dy, with the same p, seed and offset.

Nothing is stored but (seed, offset), and the mask is the same on every backend.

Sources: Srivastava et al., "Dropout", 2014; Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", 2011 (Philox, and the known-answer vectors of its library Random123).

Checks: float32 or float64 of any shape; p in [0, 1]; seed in [0, 2^64); offset one uint64.
Backends: ``numpy`` (reference.py), ``numba`` (numba_cpu.py), ``cuda`` and ``emulated`` (cuda.py, dropout.cu);
``numba_cuda`` (numba_cuda.py, twins of some versions).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._contracts import MAX_ELEMENTS, common_device, common_float
from .._dispatch import Operation
from .._errors import ArgumentError, DtypeError, ShapeError

_operation = Operation(__name__)
_UINT64 = np.dtype(np.uint64)


def checked_key(operation: str, seed: int, offset: Any) -> int:
    """``seed`` as an integer, if it and ``offset`` are such a key."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ArgumentError(f"{operation}: seed must be an integer in [0, 2**64); got {seed!r}")
    if offset.size != 1:
        raise ShapeError(f"{operation}: offset must have one element; got shape {tuple(offset.shape)}")
    if offset.dtype != _UINT64:
        raise DtypeError(f"{operation}: offset must be uint64; got {offset.dtype}")
    return int(seed)


def dropout_forward(x: Any, p: float, seed: int, offset: Any, *, version: str | None = None) -> Any:
    """``x`` with each element dropped with probability ``p``, and the others scaled by 1/(1-p).

    Args:
        x: any shape, float32 or float64; in the backward pass dL/dy.
        p: in [0, 1].
        seed: in [0, 2**64).
        offset: one-element uint64 array on the device of ``x``.
        version: the version of the kernel to run, by name.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    device = common_device("dropout", x=x, offset=offset)
    common_float("dropout", x=x)
    if not 0 <= p <= 1:
        raise ArgumentError(f"dropout: p must be a probability in [0, 1]; got {p!r}")
    key = checked_key("dropout", seed, offset)
    return _operation.run("dropout_forward", device, x, float(p), key, offset, version=version)


def philox(seed: int, offset: Any, n: int, *, first_block: int = 0) -> Any:
    """The random words of elements 0 .. n-1, or of those after ``first_block`` blocks of four.

    Args:
        seed, offset: as in :func:`dropout_forward`.
        n: how many words.
        first_block: number of the first block, in [0, 2**64); the numbers wrap around.

    Returns:
        (n,) uint32, on the device of ``offset``.
    """
    device = common_device("philox", offset=offset)
    seed = checked_key("philox", seed, offset)
    if not 0 <= n <= MAX_ELEMENTS:
        raise ArgumentError(f"philox: n must be in [0, {MAX_ELEMENTS}]; got {n!r}")
    if not 0 <= first_block < 2**64:
        raise ArgumentError(f"philox: first_block must be in [0, 2**64); got {first_block!r}")
    return _operation.run("philox", device, seed, offset, n, first_block)
