"""Launcher of batch_norm.cu: whether a channel is one slab, and grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._launch import BOOLS, FLOATS, Kernel, architecture, ceil_div, empty, runtime_of

_FORWARD_PLAIN = Kernel(__file__, "batch_norm_forward_v1_plain", T=FLOATS)
_INFERENCE_PLAIN = Kernel(__file__, "batch_norm_inference_v1_plain", T=FLOATS)
_BACKWARD_PLAIN = Kernel(__file__, "batch_norm_backward_v1_plain", T=FLOATS)

_TEAMS: dict[str, Any] = {"T": FLOATS, "TEAM": (32, 256), "VECTOR": BOOLS}
_FORWARD = Kernel(__file__, "batch_norm_forward_v2_slabs", **_TEAMS)
_BACKWARD = Kernel(__file__, "batch_norm_backward_v2_slabs", **_TEAMS)
_STATISTICS = Kernel(__file__, "batch_norm_statistics_v2_slabs", T=FLOATS, VECTOR=BOOLS)
_MERGE_STATISTICS = Kernel(__file__, "batch_norm_merge_statistics_v2_slabs", T=FLOATS)
_NORMALIZE = Kernel(__file__, "batch_norm_normalize_v2_slabs", T=FLOATS, VECTOR=BOOLS)
_INFERENCE = Kernel(__file__, "batch_norm_inference_v2_slabs", T=FLOATS, VECTOR=BOOLS)
_SUMS = Kernel(__file__, "batch_norm_sums_v2_slabs", T=FLOATS, VECTOR=BOOLS)
_MERGE_SUMS = Kernel(__file__, "batch_norm_merge_sums_v2_slabs", T=FLOATS)
_INPUT = Kernel(__file__, "batch_norm_input_v2_slabs", T=FLOATS, VECTOR=BOOLS)

_WITH_CLUSTERS = ("sm_90", "sm_100")
_CLUSTERS: dict[str, Any] = {"T": FLOATS, "CLUSTER": (1, 2, 4, 8), "VECTOR": BOOLS}
_FORWARD_CLUSTER = Kernel(__file__, "batch_norm_forward_v3_cluster", _WITH_CLUSTERS, **_CLUSTERS)
_BACKWARD_CLUSTER = Kernel(__file__, "batch_norm_backward_v3_cluster", _WITH_CLUSTERS, **_CLUSTERS)
_COLUMNS: dict[str, Any] = {"T": FLOATS, "CLUSTER": (1, 2, 4, 8)}
_FORWARD_COLUMNS = Kernel(__file__, "batch_norm_forward_v4_columns", _WITH_CLUSTERS, **_COLUMNS)
_BACKWARD_COLUMNS = Kernel(__file__, "batch_norm_backward_v4_columns", _WITH_CLUSTERS, **_COLUMNS)

#: Bytes of each array that a block of v3 or v4 keeps, as shares.cuh says, and what else its shared memory holds at
#: most: bytes in v3, numbers in v4.
_KEPT, _KEPT_BACKWARD, _REST, _REST_OF_COLUMNS = 64 * 1024, 48 * 1024, 1024, 1536
#: Two for each of 132 multiprocessors: clusters grow until there are so many blocks, in v4 not below so many rows each.
_ENOUGH_BLOCKS, _FEWEST_ROWS = 264, 64
#: A channel's numbers that lie side by side are few if they are fewer bytes than the memory gives at once.
_SECTOR = 32

_SLAB_BYTES = 16 * 1024  # SLAB of reduce.cuh, whose 256 threads are 1 team or 8


def _sizes(x: Any) -> tuple[int, int, int]:
    """N, C and L."""
    N, C = x.shape[:2]
    return N, C, x.size // (N * C) if x.size else 0


def _vector(L: int, *arrays: Any) -> bool:
    """Whether all runs of L numbers can be moved by 16 bytes at a time."""
    runtime, lanes = runtime_of(arrays[0]), 16 // arrays[0].itemsize
    return L % lanes == 0 and all(runtime.address(a) % 16 == 0 for a in arrays)


def _slab(x: Any) -> int:
    """How many numbers a slab holds."""
    return _SLAB_BYTES // x.itemsize


def _team(x: Any, M: int) -> int | None:
    """How many threads own a channel of M numbers, or None if it is longer than a slab."""
    return 32 if M <= _slab(x) // 8 else 256 if M <= _slab(x) else None


def _forward_plain(x: Any, y: Any, weight: Any, bias: Any, mean: Any, rstd: Any, eps: float) -> None:
    N, C, L = _sizes(x)
    _FORWARD_PLAIN[x.dtype](C, 256, x, weight, bias, y, mean, rstd, N, C, L, eps)


def _forward_slabs(x: Any, y: Any, weight: Any, bias: Any, mean: Any, rstd: Any, eps: float) -> None:
    N, C, L = _sizes(x)
    vector = _vector(L, x, y)
    team = _team(x, N * L)
    if team is not None:
        blocks = ceil_div(C, 256 // team)
        _FORWARD[x.dtype, team, vector](blocks, 256, x, weight, bias, y, mean, rstd, N, C, L, eps)
        return
    slabs = ceil_div(N * L, _slab(x))
    partial = empty(x, (3, slabs, C))
    _STATISTICS[x.dtype, vector](slabs * C, 256, x, partial, N, C, L)
    _MERGE_STATISTICS[x.dtype](ceil_div(C, 8), 256, partial, mean, rstd, N * L, C, eps)
    _NORMALIZE[x.dtype, vector](slabs * C, 256, x, mean, rstd, weight, bias, y, N, C, L)


def _backward_plain(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, dx: Any, dweight: Any, dbias: Any) -> None:
    N, C, L = _sizes(x)
    _BACKWARD_PLAIN[x.dtype](C, 256, grad, x, weight, mean, rstd, dx, dweight, dbias, N, C, L)


def _backward_slabs(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, dx: Any, dweight: Any, dbias: Any) -> None:
    N, C, L = _sizes(x)
    vector = _vector(L, grad, x, dx)
    team = _team(x, N * L)
    if team is not None:
        blocks = ceil_div(C, 256 // team)
        _BACKWARD[x.dtype, team, vector](blocks, 256, grad, x, weight, mean, rstd, dx, dweight, dbias, N, C, L)
        return
    slabs = ceil_div(N * L, _slab(x))
    partial = empty(x, (2, slabs, C))
    _SUMS[x.dtype, vector](slabs * C, 256, grad, x, mean, rstd, partial, N, C, L)
    _MERGE_SUMS[x.dtype](ceil_div(C, 8), 256, partial, dweight, dbias, slabs, C)
    _INPUT[x.dtype, vector](slabs * C, 256, grad, x, weight, mean, rstd, dweight, dbias, dx, N, C, L)


def _cluster(x: Any, M: int, kept: int) -> int | None:
    """How many blocks keep a channel of M numbers in v3, or None if eight cannot; more if there are few channels."""
    numbers, C = kept // x.itemsize, x.shape[1]
    blocks = next((n for n in _CLUSTERS["CLUSTER"] if M <= n * numbers), None)
    while blocks is not None and blocks < 8 and C * blocks < _ENOUGH_BLOCKS and M > blocks * _slab(x):
        blocks *= 2
    return blocks


def _forward_cluster(x: Any, y: Any, weight: Any, bias: Any, mean: Any, rstd: Any, eps: float) -> None:
    """v3; longer channels than a cluster keeps are done by v2."""
    N, C, L = _sizes(x)
    blocks = _cluster(x, N * L, _KEPT)
    if blocks is None:
        return _forward_slabs(x, y, weight, bias, mean, rstd, eps)
    kernel = _FORWARD_CLUSTER[x.dtype, blocks, _vector(L, x, y)]
    kernel(C * blocks, 256, x, weight, bias, y, mean, rstd, N, C, L, eps, shared=_KEPT + _REST)


def _backward_cluster(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, dx: Any, dweight: Any, dbias: Any) -> None:
    """v3; longer channels than a cluster keeps are done by v2."""
    N, C, L = _sizes(x)
    blocks = _cluster(x, N * L, _KEPT_BACKWARD)
    if blocks is None:
        return _backward_slabs(grad, x, weight, mean, rstd, dx, dweight, dbias)
    kernel = _BACKWARD_CLUSTER[x.dtype, blocks, _vector(L, grad, x, dx)]
    arguments = grad, x, weight, mean, rstd, dx, dweight, dbias, N, C, L
    kernel(C * blocks, 256, *arguments, shared=2 * _KEPT_BACKWARD + _REST)


def _columns(x: Any, kept: int) -> int | None:
    """How many blocks keep the rows of 32 columns in v4, or None if positions are not few, or eight blocks too few."""
    N, C, L = _sizes(x)
    rows = kept // (32 * x.itemsize)
    blocks = next((n for n in _COLUMNS["CLUSTER"] if N <= n * rows), None)
    if blocks is None or not 0 < L * x.itemsize < _SECTOR:
        return None
    while blocks < 8 and _clusters_of_columns(C, L) * blocks < _ENOUGH_BLOCKS and N > blocks * _FEWEST_ROWS:
        blocks *= 2
    return blocks


def _clusters_of_columns(C: int, L: int) -> int:
    return ceil_div(C, 32 // L)


def _forward_columns(x: Any, y: Any, weight: Any, bias: Any, mean: Any, rstd: Any, eps: float) -> None:
    """v4; channels of more positions, or of more examples than a cluster keeps, are done by v3."""
    N, C, L = _sizes(x)
    blocks = _columns(x, _KEPT)
    if blocks is None:
        return _forward_cluster(x, y, weight, bias, mean, rstd, eps)
    kernel, shared = _FORWARD_COLUMNS[x.dtype, blocks], _KEPT + _REST_OF_COLUMNS * x.itemsize
    kernel(_clusters_of_columns(C, L) * blocks, 256, x, weight, bias, y, mean, rstd, N, C, L, eps, shared=shared)


def _backward_columns(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, dx: Any, dweight: Any, dbias: Any) -> None:
    """v4; channels of more positions, or of more examples than a cluster keeps, are done by v3."""
    N, C, L = _sizes(x)
    blocks = _columns(x, _KEPT_BACKWARD)
    if blocks is None:
        return _backward_cluster(grad, x, weight, mean, rstd, dx, dweight, dbias)
    kernel, shared = _BACKWARD_COLUMNS[x.dtype, blocks], 2 * _KEPT_BACKWARD + _REST_OF_COLUMNS * x.itemsize
    arguments = grad, x, weight, mean, rstd, dx, dweight, dbias, N, C, L
    kernel(_clusters_of_columns(C, L) * blocks, 256, *arguments, shared=shared)


def _has_columns(x: Any) -> bool:
    """Whether v4 is the default: where v2 would give a block to a channel, but the loads serve several.  By bytes."""
    N, _, L = _sizes(x)
    return N * L > _slab(x) // 8 and 0 < L * x.itemsize < _SECTOR and architecture(x) >= 90


def _has_clusters(x: Any) -> bool:
    """Whether v3 is the default: for channels that v2 would read twice, on a GPU that has clusters.  By bytes."""
    N, _, L = _sizes(x)
    return N * L > _slab(x) and architecture(x) >= 90


def _inference_plain(x: Any, y: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> None:
    N, C, L = _sizes(x)
    _INFERENCE_PLAIN[x.dtype](ceil_div(x.size, 256), 256, x, mean, var, weight, bias, y, N, C, L, eps)


def _inference_slabs(x: Any, y: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> None:
    N, C, L = _sizes(x)
    blocks = ceil_div(N * L, _slab(x)) * C
    _INFERENCE[x.dtype, _vector(L, x, y)](blocks, 256, x, mean, var, weight, bias, y, N, C, L, eps)


def _forward(version: Callable[..., None], x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    y, mean, rstd = empty(x, x.shape), empty(x, x.shape[1]), empty(x, x.shape[1])
    version(x, y, weight, bias, mean, rstd, eps)
    return y, mean, rstd


def _inference(version: Callable[..., None], x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Any:
    y = empty(x, x.shape)
    version(x, y, mean, var, weight, bias, eps)
    return y


def _backward(
    version: Callable[..., None], grad: Any, x: Any, weight: Any, mean: Any, rstd: Any
) -> tuple[Any, Any, Any]:
    dx, dweight, dbias = empty(x, x.shape), empty(x, x.shape[1]), empty(x, x.shape[1])
    version(grad, x, weight, mean, rstd, dx, dweight, dbias)
    return dx, dweight, dbias


def batch_norm_forward(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """As the reference's; see the package's docstring."""
    version = _forward_columns if _has_columns(x) else _forward_cluster if _has_clusters(x) else _forward_slabs
    return _forward(version, x, weight, bias, eps)


def batch_norm_inference(x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Any:
    """As the reference's."""
    return _inference(_inference_slabs, x, mean, var, weight, bias, eps)


def batch_norm_backward(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any) -> tuple[Any, Any, Any]:
    """As the reference's."""
    version = _backward_columns if _has_columns(x) else _backward_cluster if _has_clusters(x) else _backward_slabs
    return _backward(version, grad, x, weight, mean, rstd)


VERSIONS = {
    "batch_norm_forward": {
        "v1_plain": lambda *arguments: _forward(_forward_plain, *arguments),
        "v2_slabs": lambda *arguments: _forward(_forward_slabs, *arguments),
        "v3_cluster": lambda *arguments: _forward(_forward_cluster, *arguments),
        "v4_columns": lambda *arguments: _forward(_forward_columns, *arguments),
    },
    "batch_norm_inference": {
        "v1_plain": lambda *arguments: _inference(_inference_plain, *arguments),
        "v2_slabs": batch_norm_inference,
    },
    "batch_norm_backward": {
        "v1_plain": lambda *arguments: _backward(_backward_plain, *arguments),
        "v2_slabs": lambda *arguments: _backward(_backward_slabs, *arguments),
        "v3_cluster": lambda *arguments: _backward(_backward_cluster, *arguments),
        "v4_columns": lambda *arguments: _backward(_backward_columns, *arguments),
    },
}

#: Versions that are for some GPUs alone.
ARCHITECTURES = {"v3_cluster": _WITH_CLUSTERS, "v4_columns": _WITH_CLUSTERS}
