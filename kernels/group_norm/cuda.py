"""Launcher of group_norm.cu: whether a set is one slab, and grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._launch import BOOLS, FLOATS, Kernel, architecture, ceil_div, empty, runtime_of

_FORWARD_PLAIN = Kernel(__file__, "group_norm_forward_v1_plain", T=FLOATS)
_BACKWARD_PLAIN = Kernel(__file__, "group_norm_backward_v1_plain", T=FLOATS)
_PARAMETERS = Kernel(__file__, "group_norm_parameters", T=FLOATS)

_TEAMS: dict[str, Any] = {"T": FLOATS, "TEAM": (32, 256), "VECTOR": BOOLS}
_FORWARD = Kernel(__file__, "group_norm_forward_v2_slabs", **_TEAMS)
_BACKWARD = Kernel(__file__, "group_norm_backward_v2_slabs", **_TEAMS)
_STATISTICS = Kernel(__file__, "group_norm_statistics_v2_slabs", T=FLOATS, VECTOR=BOOLS)
_MERGE_STATISTICS = Kernel(__file__, "group_norm_merge_statistics_v2_slabs", T=FLOATS)
_NORMALIZE = Kernel(__file__, "group_norm_normalize_v2_slabs", T=FLOATS, VECTOR=BOOLS)
_CHANNELS = Kernel(__file__, "group_norm_channels_v2_slabs", **_TEAMS)
_MERGE_CHANNELS = Kernel(__file__, "group_norm_merge_channels_v2_slabs", T=FLOATS)
_INPUT = Kernel(__file__, "group_norm_input_v2_slabs", T=FLOATS, VECTOR=BOOLS)

_WITH_CLUSTERS = ("sm_90", "sm_100")
_CLUSTERS: dict[str, Any] = {"T": FLOATS, "CLUSTER": (1, 2, 4, 8), "VECTOR": BOOLS}
_FORWARD_CLUSTER = Kernel(__file__, "group_norm_forward_v3_cluster", _WITH_CLUSTERS, **_CLUSTERS)
_BACKWARD_CLUSTER = Kernel(__file__, "group_norm_backward_v3_cluster", _WITH_CLUSTERS, **_CLUSTERS)

#: Bytes of each array that a block of v3 keeps, as shares.cuh says, and what else its shared memory holds at most.
_KEPT, _KEPT_BACKWARD, _REST = 64 * 1024, 48 * 1024, 1024
#: Two for each of 132 multiprocessors: clusters grow until there are so many blocks.
_ENOUGH_BLOCKS = 264

_SLAB_BYTES = 16 * 1024  # SLAB of reduce.cuh, whose 256 threads are 1 team or 8


def _sizes(x: Any, groups: int) -> tuple[int, int, int]:
    """The number of sets, the channels of each, and the positions."""
    N, C = x.shape[:2]
    return N * groups, C // groups, x.size // (N * C) if N else 1


def _vector(length: int, *arrays: Any) -> bool:
    """Whether all runs of ``length`` numbers can be moved by 16 bytes at a time."""
    runtime, lanes = runtime_of(arrays[0]), 16 // arrays[0].itemsize
    return length % lanes == 0 and all(runtime.address(a) % 16 == 0 for a in arrays)


def _slab(x: Any) -> int:
    """How many numbers a slab holds."""
    return _SLAB_BYTES // x.itemsize


def _team(x: Any, length: int) -> int | None:
    """How many threads own ``length`` numbers, or None if they are more than a slab."""
    return 32 if length <= _slab(x) // 8 else 256 if length <= _slab(x) else None


def _forward_plain(x: Any, groups: int, weight: Any, bias: Any, y: Any, mean: Any, rstd: Any, eps: float) -> None:
    sets, W, L = _sizes(x, groups)
    _FORWARD_PLAIN[x.dtype](sets, 256, x, weight, bias, y, mean, rstd, groups, W, L, eps)


def _forward_slabs(x: Any, groups: int, weight: Any, bias: Any, y: Any, mean: Any, rstd: Any, eps: float) -> None:
    sets, W, L = _sizes(x, groups)
    vector = _vector(W * L, x, y)
    team = _team(x, W * L)
    if team is not None:
        blocks = ceil_div(sets, 256 // team)
        _FORWARD[x.dtype, team, vector](blocks, 256, x, weight, bias, y, mean, rstd, sets, groups, W, L, eps)
        return
    slabs = ceil_div(W * L, _slab(x))
    partial = empty(x, (3, slabs, sets))
    _STATISTICS[x.dtype, vector](slabs * sets, 256, x, partial, sets, W * L)
    _MERGE_STATISTICS[x.dtype](ceil_div(sets, 8), 256, partial, mean, rstd, sets, W * L, eps)
    _NORMALIZE[x.dtype, vector](slabs * sets, 256, x, mean, rstd, weight, bias, y, sets, groups, W, L)


def _cluster(x: Any, sets: int, D: int, kept: int) -> int | None:
    """How many blocks keep a set of D numbers in v3, or None if eight cannot; more if there are few sets."""
    numbers = kept // x.itemsize
    blocks = next((n for n in _CLUSTERS["CLUSTER"] if D <= n * numbers), None)
    while blocks is not None and blocks < 8 and sets * blocks < _ENOUGH_BLOCKS and D > blocks * _slab(x):
        blocks *= 2
    return blocks


def _forward_cluster(x: Any, groups: int, weight: Any, bias: Any, y: Any, mean: Any, rstd: Any, eps: float) -> None:
    """v3; longer sets than a cluster keeps are done by v2."""
    sets, W, L = _sizes(x, groups)
    blocks = _cluster(x, sets, W * L, _KEPT)
    if blocks is None:
        return _forward_slabs(x, groups, weight, bias, y, mean, rstd, eps)
    kernel = _FORWARD_CLUSTER[x.dtype, blocks, _vector(W * L, x, y)]
    kernel(sets * blocks, 256, x, weight, bias, y, mean, rstd, groups, W, L, eps, shared=_KEPT + _REST)


def _has_clusters(x: Any, groups: int) -> bool:
    """Whether v3 is the default: for sets that v2 would read twice, on a GPU that has clusters.  By bytes."""
    _, W, L = _sizes(x, groups)
    return W * L > _slab(x) and architecture(x) >= 90


def _backward_plain(grad: Any, x: Any, groups: int, weight: Any, mean: Any, rstd: Any, dx: Any) -> Any:
    sets, W, L = _sizes(x, groups)
    sums = empty(x, (2, *x.shape[:2]))
    _BACKWARD_PLAIN[x.dtype](sets, 256, grad, x, weight, mean, rstd, dx, sums, groups, W, L)
    return sums


def _backward_slabs(grad: Any, x: Any, groups: int, weight: Any, mean: Any, rstd: Any, dx: Any) -> Any:
    sets, W, L = _sizes(x, groups)
    N, C = x.shape[:2]
    vector = _vector(W * L, grad, x, dx)
    team = _team(x, W * L)
    if team is not None:
        sums = empty(x, (2, N, C))
        blocks = ceil_div(sets, 256 // team)
        _BACKWARD[x.dtype, team, vector](blocks, 256, grad, x, weight, mean, rstd, dx, sums, sets, groups, W, L)
        return sums
    slabs = ceil_div(L, _slab(x))
    team = _team(x, L) or 256
    sums, means = empty(x, (2, slabs * N, C)), empty(x, (2, sets))
    blocks = ceil_div(slabs * N * C, 256 // team)
    _CHANNELS[x.dtype, team, _vector(L, grad, x)](blocks, 256, grad, x, mean, rstd, sums, N, C, W, L)
    _MERGE_CHANNELS[x.dtype](ceil_div(sets, 8), 256, sums, weight, means, slabs, sets, groups, W, L)
    blocks = ceil_div(W * L, _slab(x)) * sets
    _INPUT[x.dtype, vector](blocks, 256, grad, x, weight, mean, rstd, means, dx, sets, groups, W, L)
    return sums


def _backward_cluster(grad: Any, x: Any, groups: int, weight: Any, mean: Any, rstd: Any, dx: Any) -> Any:
    """v3; longer sets than a cluster keeps are done by v2."""
    sets, W, L = _sizes(x, groups)
    blocks = _cluster(x, sets, W * L, _KEPT_BACKWARD)
    if blocks is None:
        return _backward_slabs(grad, x, groups, weight, mean, rstd, dx)
    sums = empty(x, (2, *x.shape[:2]))
    kernel = _BACKWARD_CLUSTER[x.dtype, blocks, _vector(W * L, grad, x, dx)]
    arguments = grad, x, weight, mean, rstd, dx, sums, sets, groups, W, L
    kernel(sets * blocks, 256, *arguments, shared=2 * _KEPT_BACKWARD + _REST)
    return sums


def _forward(
    version: Callable[..., None], x: Any, groups: int, weight: Any, bias: Any, eps: float
) -> tuple[Any, Any, Any]:
    y, mean, rstd = empty(x, x.shape), empty(x, (x.shape[0], groups)), empty(x, (x.shape[0], groups))
    version(x, groups, weight, bias, y, mean, rstd, eps)
    return y, mean, rstd


def _backward(
    version: Callable[..., Any], grad: Any, x: Any, groups: int, weight: Any, mean: Any, rstd: Any
) -> tuple[Any, Any, Any]:
    C = x.shape[1]
    dx, dweight, dbias = empty(x, x.shape), empty(x, C), empty(x, C)
    sums = version(grad, x, groups, weight, mean, rstd, dx)  # (2, parts of each channel, C)
    _PARAMETERS[x.dtype]((ceil_div(C, 32), 2), (32, 32), sums, dweight, dbias, sums.shape[1], C)
    return dx, dweight, dbias


def group_norm_forward(x: Any, groups: int, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """As the reference's; see the package's docstring."""
    return _forward(_forward_cluster if _has_clusters(x, groups) else _forward_slabs, x, groups, weight, bias, eps)


def group_norm_backward(grad: Any, x: Any, groups: int, weight: Any, mean: Any, rstd: Any) -> tuple[Any, Any, Any]:
    """As the reference's."""
    version = _backward_cluster if _has_clusters(x, groups) else _backward_slabs
    return _backward(version, grad, x, groups, weight, mean, rstd)


VERSIONS = {
    "group_norm_forward": {
        "v1_plain": lambda *arguments: _forward(_forward_plain, *arguments),
        "v2_slabs": lambda *arguments: _forward(_forward_slabs, *arguments),
        "v3_cluster": lambda *arguments: _forward(_forward_cluster, *arguments),
    },
    "group_norm_backward": {
        "v1_plain": lambda *arguments: _backward(_backward_plain, *arguments),
        "v2_slabs": lambda *arguments: _backward(_backward_slabs, *arguments),
        "v3_cluster": lambda *arguments: _backward(_backward_cluster, *arguments),
    },
}

#: Versions that are for some GPUs alone.
ARCHITECTURES = {"v3_cluster": _WITH_CLUSTERS}
