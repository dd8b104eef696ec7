"""Launcher of softmax_cross_entropy.cu: labels, then the rows, then the sum."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .._contracts import INTEGERS
from .._devices import device_of
from .._dtypes import HALVES, is_half, wide
from .._faults import fault_flag, watch
from .._launch import BOOLS, FLOATS, Kernel, architecture, ceil_div, empty, runtime_of
from . import label_error

_STORED = (*FLOATS, *HALVES)
#: Threads that share a row in registers, each of them 64 bytes of it.
_TEAMS = (32, 64, 128, 256)
_LABELS = Kernel(__file__, "softmax_cross_entropy_labels", S=_STORED, LABEL=INTEGERS)
_PLAIN = Kernel(__file__, "softmax_cross_entropy_forward_v1_plain", S=_STORED)
_SMEM_TILE = Kernel(__file__, "softmax_cross_entropy_forward_v2_smem_tile", S=_STORED)
_REGISTER_TILE = Kernel(
    __file__, "softmax_cross_entropy_forward_v3_register_tile", S=_STORED, TEAM=(4, *_TEAMS), VECTOR=BOOLS
)
_WITH_CLUSTERS = ("sm_90", "sm_100")
_CLUSTER = Kernel(
    __file__,
    "softmax_cross_entropy_forward_v4_cluster",
    architectures=_WITH_CLUSTERS,
    S=_STORED,
    CLUSTER=(1, 2, 4, 8),
    VECTOR=BOOLS,
)
#: Bytes of a row that a block of v4 keeps, and of what else is in its shared memory at most.
_KEPT, _REST = 64 * 1024, 1024
_SUM = Kernel(__file__, "softmax_cross_entropy_sum", T=FLOATS)

#: For so many examples is a block of ``labels``, for so many values one of ``sum``.
_LABELS_PER_BLOCK = 1024
_VALUES_PER_BLOCK = 4096

#: The kernel, how many blocks, and the threads of each, for N examples of C classes; ``vector`` says whether
#: the rows of all matrices start at multiples of 16 bytes.
_Version = Callable[[np.dtype, int, int, bool], tuple[Callable[..., None], int, int]]


def _plain(dtype: np.dtype, N: int, C: int, vector: bool) -> tuple[Callable[..., None], int, int]:
    return _PLAIN[dtype], ceil_div(N, 128), 128


def _smem_tile(dtype: np.dtype, N: int, C: int, vector: bool) -> tuple[Callable[..., None], int, int]:
    return _SMEM_TILE[dtype], N, 128


def _register_tile(dtype: np.dtype, N: int, C: int, vector: bool) -> tuple[Callable[..., None], int, int]:
    """The smallest team whose tile holds a row; the largest one reads longer rows tile by tile."""
    if C <= (32 if is_half(dtype) else 16):
        team = 4
    else:
        team = next((team for team in _TEAMS if C * wide(dtype).itemsize <= team * 64), _TEAMS[-1])
    threads = team if team > 32 else 128
    return _REGISTER_TILE[dtype, team, vector], ceil_div(N, threads // team), threads


def _cluster(dtype: np.dtype, N: int, C: int, vector: bool) -> tuple[Callable[..., None], int, int]:
    """The smallest cluster whose blocks keep a row together; the largest one reads the rest of longer rows twice."""
    blocks = next((n for n in _CLUSTER.templates["CLUSTER"] if C * dtype.itemsize <= n * _KEPT), 8)
    return partial(_CLUSTER[dtype, blocks, vector], shared=_KEPT + _REST), N * blocks, 256


def _default(logits: Any) -> _Version:
    """v4 for rows that v3 would read twice, where there are clusters; by bytes, not by measurement."""
    tile = 256 * 64 // wide(logits.dtype).itemsize
    return _cluster if logits.shape[1] > tile and architecture(logits) >= 90 else _register_tile


def _run(
    version: _Version,
    logits: Any,
    target: Any,
    weight: Any,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    *,
    labels: Any = _LABELS,
    sums: Any = _SUM,
) -> tuple[Any, Any]:
    N, C = logits.shape
    mean = reduction == "mean"
    if target.ndim == 1:
        probabilities = None
        classes, normaliser = _classes(target, weight, logits, ignore_index, mean, labels, sums)
        divisor = 1.0
    else:
        probabilities, classes, normaliser = target, None, None
        divisor = float(N) if mean else 1.0
    losses, grad = empty(logits, N, wide(logits.dtype)), empty(logits, (N, C))
    runtime = runtime_of(logits)
    matrices = [a for a in (logits, probabilities, weight, grad) if a is not None]
    vector = C * logits.itemsize % 16 == 0 and all(runtime.address(a) % 16 == 0 for a in matrices)
    kernel, blocks, threads = version(logits.dtype, N, C, vector)
    arguments = logits, probabilities, classes, weight, label_smoothing, normaliser, divisor, N, C, losses, grad
    kernel(blocks, threads, *arguments)
    return (losses if reduction == "none" else _sum(losses, normaliser, divisor, sums)), grad


def _classes(
    target: Any, weight: Any, logits: Any, ignore_index: int, mean: bool, labels: Any, sums: Any
) -> tuple[Any, Any]:
    """The labels as 32-bit classes, and with ``mean`` the normaliser; labels are checked on the way."""
    N, C = logits.shape
    limits = np.iinfo(target.dtype)
    ignores = bool(limits.min <= ignore_index <= limits.max)
    blocks = max(1, ceil_div(N, _LABELS_PER_BLOCK))
    classes = empty(logits, N, np.uint32)
    shares = empty(logits, blocks, wide(logits.dtype)) if mean else None
    fault = fault_flag(logits)
    ignored = ignore_index if ignores else 0
    labels[logits.dtype, target.dtype](blocks, 256, target, weight, N, C, ignores, ignored, classes, shares, fault)

    def error(position: int) -> Exception:
        label = int(device_of(target).to_host(target)[position])
        return label_error(position, label, C, ignore_index)

    watch(fault, error)
    if shares is None or blocks == 1:
        return classes, shares
    return classes, _sum(shares, None, 1.0, sums)


def _sum(values: Any, normaliser: Any, divisor: float, kernel: Any) -> Any:
    """The sum of ``values``, of shape (), divided by the normaliser or the divisor."""
    while (blocks := ceil_div(values.size, _VALUES_PER_BLOCK)) > 1:
        sums = empty(values, blocks)
        kernel[values.dtype](blocks, 256, values, values.size, None, 1.0, sums)
        values = sums
    total = empty(values, ())
    kernel[values.dtype](1, 256, values, values.size, normaliser, divisor, total)
    return total


def softmax_cross_entropy_forward(*arguments: Any) -> tuple[Any, Any]:
    """As the reference's; see the package's docstring."""
    return _run(_default(arguments[0]), *arguments)


def _pinned(version: _Version) -> Callable[..., Any]:
    return lambda *arguments: _run(version, *arguments)


VERSIONS = {
    "softmax_cross_entropy_forward": {
        "v1_plain": _pinned(_plain),
        "v2_smem_tile": _pinned(_smem_tile),
        "v3_register_tile": _pinned(_register_tile),
        "v4_cluster": _pinned(_cluster),
    }
}

#: Versions that are for some GPUs alone.
ARCHITECTURES = {"v4_cluster": _WITH_CLUSTERS}
