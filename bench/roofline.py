"""What this machine can do at most: bytes copied and multiply-adds done in a second, with so many threads.

The limit of a row is the longer of two times: its bytes at the speed of a copy past the caches, and its operations
at the speed of multiply-adds that stay in registers (Williams, Waterman and Patterson, "Roofline", 2009).  Both
speeds are measured beside the row, since machines change theirs, and are the best of several tries: what is
slower was disturbed.

Bytes are counted as read plus written.  The copy is the C library's, which writes past the caches; loops of our own
reach two thirds of it.  A row whose data find room in a cache may pass its limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..kernels import _threads
from ..kernels._jit import in_parts
from ..kernels._simd import Pointer, Stage, Value, simd, vector_bytes, vector_registers
from ..recipes import machine
from .results import Rates

_TRIES = 5
#: Sums that grow side by side, a vector each: enough to hide that a multiply-add takes several cycles.
_CHAINS = vector_registers() - 4
_VECTOR = vector_bytes()
#: Parts of the work for each thread.
_PARTS = 4
_ROUNDS = 500_000


@simd
def _chains(s: Stage, x: Pointer, y: Pointer, at: Value, rounds: Value) -> None:
    """y[at + i] = x[0] y[at + i] + x[1], ``rounds`` times, for _CHAINS vectors of i."""
    lanes = s.lanes(x)
    a, b = s.splat(x[0], lanes), s.splat(x[1], lanes)
    sums = [s.variable(y.load(at + k * lanes, lanes)) for k in range(_CHAINS)]
    with s.range(0, rounds):
        for variable in sums:
            variable.value = s.fma(a, variable.value, b)
    for k, variable in enumerate(sums):
        y.store(at + k * lanes, variable.value)


@in_parts
def multiply_adds(part: int, slot: int, x: Any, y: Any, rounds: int) -> None:
    """:func:`_chains` of each part's numbers in y."""
    _chains(x, y, part * (_CHAINS * _VECTOR // x.itemsize), rounds)


def numbers(dtype: str, parts: int) -> int:
    """How many numbers :func:`multiply_adds` works on."""
    return parts * _CHAINS * _VECTOR // np.dtype(dtype).itemsize


def _best(work: Callable[[], object]) -> float:
    """Seconds of the quickest of some tries, after one that does not count."""
    times = []
    for _ in range(1 + _TRIES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def peak(dtype: str, threads: int, rounds: int = _ROUNDS) -> float:
    """Operations per second, two for each multiply-add, in ``dtype`` (``"float32"``, ``"float64"``)."""
    parts, before = _PARTS * threads, _threads.get_num_threads()
    x, y = np.array([0.5, 1], dtype), np.zeros(numbers(dtype, parts), dtype)
    _threads.set_num_threads(threads)
    try:
        return 2 * y.size * rounds / _best(lambda: multiply_adds(parts, x, y, rounds))
    finally:
        _threads.set_num_threads(before)


def bandwidth(threads: int, size: int | None = None) -> float:
    """Bytes per second, read plus written, of a copy of ``size`` bytes: by default those of the caches, twice past."""
    size = max(machine.cache_bytes(), 2**26) if size is None else size
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    pieces = [*zip(np.array_split(target, threads), np.array_split(source, threads), strict=True)]
    with ThreadPoolExecutor(threads) as pool:
        return 2 * size / _best(lambda: [*pool.map(lambda piece: np.copyto(*piece), pieces)])


def rates(dtype: str, threads: int) -> Rates:
    """Both, as they are now."""
    return Rates(bandwidth(threads), peak(dtype, threads))
