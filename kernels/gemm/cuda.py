"""Launcher of gemm.cu and gemm_tensor_core.cu: grids, and which version for which shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._devices import device_of
from .._dispatch import current_choice
from .._dtypes import HALVES, is_half, wide
from .._epilogue import NOTHING, Ending
from .._errors import BackendError
from .._launch import (
    BOOLS,
    FLOATS,
    Instance,
    Kernel,
    architecture,
    ceil_div,
    empty,
    multiprocessors,
    result,
    runtime_of,
)
from ..activation import activation_backward
from ..activation.cuda import kind_number
from ..dropout import dropout_forward
from . import Geometry, Layer, geometry
from ._layers import stack
from .cost import DEPTH, HALF_WAYS, TENSOR_CORES, WAYS, choose, slices
from .hopper import VERSIONS as HOPPER_VERSIONS
from .hopper import Version as HopperVersion
from .hopper import chosen as chosen_on_hopper
from .hopper import wgmma

_TEMPLATES: dict[str, Any] = {"T": FLOATS, "TRANSPOSE_A": BOOLS, "TRANSPOSE_B": BOOLS}
_PLAIN = Kernel(__file__, "gemm_v1_plain", **_TEMPLATES)
_SMEM_TILE = Kernel(__file__, "gemm_v2_smem_tile", **_TEMPLATES)
_REGISTER_TILE = Kernel(__file__, "gemm_v3_register_tile", **_TEMPLATES, VECTOR=BOOLS)
_WARP_TILE = Kernel(__file__, "gemm_v5_warp_tile", **_TEMPLATES, VECTOR=BOOLS, WIDE=BOOLS)
_WARPS_SHARE_K = Kernel(__file__, "gemm_v6_warps_share_k", **_TEMPLATES)
_SUM_SPLITS = Kernel(__file__, "gemm_sum_splits", S=(*FLOATS, *HALVES))
_COLUMN_SUMS = Kernel(__file__, "gemm_column_sums", S=(*FLOATS, *HALVES))
_TENSOR_CORES = Path(__file__).with_name("gemm_tensor_core.cu")
#: The template argument PRECISION of gemm_tensor_core.cu.
_PRECISIONS = {"tf32": 0, "bf16": 1, "fp16": 2}
#: The sides that a block's tile of y may have there.
_SIDES = (64, 128)
_TRANSPOSES: dict[str, Any] = {"TRANSPOSE_A": BOOLS, "TRANSPOSE_B": BOOLS}
_TENSOR_CORE = Kernel(_TENSOR_CORES, "gemm_v4_tensor_core", PRECISION=_PRECISIONS.values(), **_TRANSPOSES, VECTOR=BOOLS)
_PIPELINED = Kernel(
    _TENSOR_CORES, "gemm_v8_tensor_core_pipelined", PRECISION=_PRECISIONS.values(), TILE=_SIDES, **_TRANSPOSES
)
_SPLIT = Kernel(_TENSOR_CORES, "gemm_v9_bf16_split", TILE=_SIDES, **_TRANSPOSES)
_HALF = Kernel(_TENSOR_CORES, "gemm_v14_half_cp_async", S=HALVES, TILE=(64, 128, 256), **_TRANSPOSES)
#: Three stages, 32 deep, where static shared memory is too small for them.
_HALF_SHARED = {64: 0, 128: 0, 256: 3 * (256 + 128) * 32 * 2}
#: Where six products of bf16 parts should take less time than one of float32: the tensor cores of these do 16 and 15
#: times as many operations a second as the rest of the processor, those of sm_86 and sm_89 at most 4 times.  By data
#: sheets, not by measurement; nothing is known yet of mma.sync on sm_100.
_SPLIT_PAYS = (80, 90)

#: A grid has at most so many blocks along z; the kernels loop over the rest of the batch.
_MAX_Z = 65535


class _Plan(NamedTuple):
    """A version for one product: the kernel, the side of its tile of y, and its block.

    ``columns`` where the tile is no square.  ``splits`` where the kernel takes slices of K: how many there are, each
    but the last a multiple of ``depth``.  ``ending`` makes the kernel's last arguments of what follows the product.
    """

    kernel: Instance
    tile: int
    block: int | tuple[int, int]
    columns: int = 0
    splits: int = 0
    depth: int = DEPTH
    ending: Callable[[Ending], tuple[Any, ...]] = lambda end: (end.packed(),)


def _plain(a: Any, b: Any, transposes: tuple[bool, bool]) -> _Plan:
    return _Plan(_PLAIN[a.dtype, *transposes], 16, (16, 16))


def _smem_tile(a: Any, b: Any, transposes: tuple[bool, bool]) -> _Plan:
    return _Plan(_SMEM_TILE[a.dtype, *transposes], 16, (16, 16))


def _register_tile(a: Any, b: Any, transposes: tuple[bool, bool]) -> _Plan:
    return _Plan(_REGISTER_TILE[a.dtype, *transposes, _loads_vectors(a, b)], 64, 256)


def _warp_tile(name: str, splits: int = 1) -> Callable[..., _Plan]:
    def plan(a: Any, b: Any, transposes: tuple[bool, bool]) -> _Plan:
        # 16 bytes at once are copied of a matrix whose rows in a tile run along memory; of the other, never.
        along_rows = [matrix for matrix, along in ((a, transposes[0]), (b, not transposes[1])) if along]
        kernel = _WARP_TILE[a.dtype, *transposes, _loads_vectors(*along_rows), name.endswith("wide")]
        rows, columns = WAYS[name].tile(a.itemsize)
        return _Plan(kernel, rows, 128, columns, splits)

    return plan


def _warps_share_k(splits: int = 1) -> Callable[..., _Plan]:
    return lambda a, b, transposes: _Plan(_WARPS_SHARE_K[a.dtype, *transposes], 16, 256, 16, splits)


def _split_k(a: Any, b: Any, transposes: tuple[bool, bool]) -> _Plan:
    """At least two slices, if K has them and two results have less than 2³¹ elements."""
    g = geometry(a.shape, b.shape, *transposes)
    name, splits = _chosen(g, a, ("v5_warp_tile_narrow", "v5_warp_tile_wide"))
    if 2 * math.prod(g.y_shape) < 2**31:
        splits = max(2, splits)
    return _warp_tile(name, splits)(a, b, transposes)


def _chosen(g: Geometry, like: Any, among: tuple[str, ...] = tuple(WAYS)) -> tuple[str, int]:
    """The version and the number of slices that the model says."""
    return choose(g.M, g.N, g.K, math.prod(g.batch), like.itemsize, multiprocessors(like), among)


def _tensor_core(precision: str) -> Callable[..., _Plan]:
    def plan(a: Any, b: Any, transposes: tuple[bool, bool]) -> _Plan:
        if a.dtype != np.float32:
            raise BackendError(f"gemm: the tensor cores' {precision} takes float32; got {a.dtype}")
        return _Plan(_TENSOR_CORE[_PRECISIONS[precision], *transposes, _loads_vectors(a, b)], 64, 128)

    return plan


def _pipelined(precision: str, side: int, splits: int = 1) -> Callable[..., _Plan]:
    def plan(a: Any, b: Any, transposes: tuple[bool, bool]) -> _Plan:
        if a.dtype != np.float32:
            raise BackendError(f"gemm: the tensor cores' {precision} takes float32; got {a.dtype}")
        depth = TENSOR_CORES[f"v8_tensor_core_pipelined_{side}_{precision}"].depth
        return _Plan(_PIPELINED[_PRECISIONS[precision], side, *transposes], side, 2 * side, 0, splits, depth)

    return plan


def _split(side: int, splits: int = 1) -> Callable[..., _Plan]:
    def plan(a: Any, b: Any, transposes: tuple[bool, bool]) -> _Plan:
        if a.dtype != np.float32:
            raise BackendError(f"gemm: the split into bf16 takes float32; got {a.dtype}")
        depth = TENSOR_CORES[f"v9_bf16_split_{side}"].depth
        return _Plan(_SPLIT[side, *transposes], side, 2 * side, 0, splits, depth)

    return plan


def _on_tensor_cores(g: Geometry, like: Any, precision: str, least: int = 1) -> Callable[..., _Plan]:
    """v8, or for ``float32_split`` v9, with the tile and at least as many slices of K as the model says."""
    names = _names(precision)
    chosen, splits = _chosen(g, like, names)
    side, splits = _SIDES[names.index(chosen)], max(splits, least)
    return _split(side, splits) if precision == "float32_split" else _pipelined(precision, side, splits)


def _names(precision: str) -> tuple[str, ...]:
    """Of the versions for ``precision``, one for each of :data:`_SIDES`."""
    name, suffix = ("v9_bf16_split", "") if precision == "float32_split" else ("v8_tensor_core_pipelined", precision)
    return tuple([f"{name}_{side}{suffix and '_'}{suffix}" for side in _SIDES])


def _tensor_core_split_k(precision: str) -> Callable[..., _Plan]:
    """At least two slices, if K has them and two results have less than 2³¹ elements."""

    def plan(a: Any, b: Any, transposes: tuple[bool, bool]) -> _Plan:
        g = geometry(a.shape, b.shape, *transposes)
        least = 2 if 2 * math.prod(g.y_shape) < 2**31 else 1
        return _on_tensor_cores(g, a, precision, least)(a, b, transposes)

    return plan


def _loads_vectors(*matrices: Any) -> bool:
    """16-byte loads need the matrices, and each of their rows, to start at a multiple of 16 bytes."""
    return all(
        matrix.shape[-1] * matrix.itemsize % 16 == 0 == runtime_of(matrix).address(matrix) % 16 for matrix in matrices
    )


def _run(
    version: Callable[..., _Plan] | None,
    a: Any,
    b: Any,
    bias: Any,
    transpose_a: bool,
    transpose_b: bool,
    end: Ending,
    out: Any,
) -> Any:
    if is_half(a.dtype):
        if version is not None:
            raise BackendError(f"gemm: {', '.join(FOR_HALVES)} take {a.dtype}; the other versions do not")
        return _run_halves(None, a, b, bias, transpose_a, transpose_b, end, out)
    g = geometry(a.shape, b.shape, transpose_a, transpose_b)
    if version is None and current_choice().precision == "tf32" and a.dtype == np.float32 and architecture(a) == 90:
        on_hopper = chosen_on_hopper(g, a, b, transpose_a, transpose_b, _names("tf32"))
        if on_hopper is not None:
            return wgmma(on_hopper, _MAX_Z, a, b, bias, transpose_a, transpose_b, end, out)
    y = result(out, a, g.y_shape)
    a, a_step = _batched(a, g.batch)
    b, b_step = _batched(b, g.batch)
    plan = (version or _default(g, a))(a, b, (transpose_a, transpose_b))
    batch = math.prod(g.batch)
    blocks = ceil_div(g.M, plan.tile), ceil_div(g.N, plan.columns or plan.tile)
    sizes = g.M, g.N, g.K, batch, a_step, b_step
    if plan.splits:
        _run_slices(plan, blocks, a, b, bias, y, sizes, end)
    else:
        plan.kernel((*blocks, min(batch, _MAX_Z)), plan.block, a, b, bias, y, *sizes, *plan.ending(end))
    return y


def _run_slices(
    plan: _Plan, blocks: tuple[int, int], a: Any, b: Any, bias: Any, y: Any, sizes: tuple[int, ...], end: Ending
) -> None:
    """Launch a kernel that takes slices of K; of several, add the results in a launch of its own."""
    M, N, K, batch, *_ = sizes
    splits, length = slices(K, plan.splits, plan.depth)
    grid = (*blocks, min(batch * splits, _MAX_Z))
    if splits == 1:
        plan.kernel(grid, plan.block, a, b, bias, y, *sizes, end.packed(), 1, length)
        return
    partials = empty(y, (batch, splits, M, N))
    plan.kernel(grid, plan.block, a, b, None, partials, *sizes, NOTHING.packed(), splits, length)
    _SUM_SPLITS[y.dtype](ceil_div(y.size, 256), 256, partials, bias, y, M * N, N, y.size, splits, end.packed())


def _run_halves(
    rows: int | None, a: Any, b: Any, bias: Any, transpose_a: bool, transpose_b: bool, end: Ending, out: Any
) -> Any:
    """float16 and bfloat16: by blocks of so many rows, or as the model says."""
    if not is_half(a.dtype):
        raise BackendError(f"gemm: this version takes float16 and bfloat16; got {a.dtype}")
    g = geometry(a.shape, b.shape, transpose_a, transpose_b)
    if rows is None and architecture(a) == 90:
        on_hopper = chosen_on_hopper(g, a, b, transpose_a, transpose_b, tuple(HALF_WAYS))
        if on_hopper is not None:
            return wgmma(on_hopper, _MAX_Z, a, b, bias, transpose_a, transpose_b, end, out)
    y = result(out, a, g.y_shape)
    a, a_step = _batched(a, g.batch)
    b, b_step = _batched(b, g.batch)
    name, splits = (f"v14_half_cp_async_{rows}", 1) if rows else _chosen(g, a, tuple(HALF_WAYS))
    way = HALF_WAYS[name]
    splits, length = slices(g.K, splits)
    batch = math.prod(g.batch)
    grid = ceil_div(g.M, way.rows), ceil_div(g.N, way.columns), min(batch * splits, _MAX_Z)
    partials = empty(y, (batch, splits, g.M, g.N), np.float32) if splits > 1 else None
    sizes = g.M, g.N, g.K, batch, a_step, b_step
    kernel, threads = _HALF[a.dtype, way.rows, transpose_a, transpose_b], 128 if way.rows == 64 else 256
    shared = _HALF_SHARED[way.rows]
    kernel(grid, threads, a, b, bias, y, partials, *sizes, end.packed(), splits, length, shared=shared)
    if partials is not None:
        blocks = ceil_div(y.size, 256)
        _SUM_SPLITS[y.dtype](blocks, 256, partials, bias, y, g.M * g.N, g.N, y.size, splits, end.packed())
    return y


def _batched(matrix: Any, batch: tuple[int, ...]) -> tuple[Any, int]:
    """``matrix`` with elements between one product's matrix and the next: all of them, or 0 for one matrix.

    Other patterns of broadcasting are written out.
    """
    size = matrix.shape[-2] * matrix.shape[-1]
    own = tuple(matrix.shape[:-2])
    if math.prod(own) == math.prod(batch):
        return matrix, size
    if math.prod(own) == 1:
        return matrix, 0
    module = device_of(matrix).array_module
    return module.ascontiguousarray(module.broadcast_to(matrix, (*batch, *matrix.shape[-2:]))), size


def _default(g: Geometry, a: Any) -> Callable[..., _Plan]:
    """The version for a product, by a model (:mod:`.cost`); nothing here was measured."""
    precision, thin = current_choice().precision, min(g.M, g.N) <= 16
    if precision != "float32" and a.dtype == np.float32:
        pays = not thin and architecture(a) in _SPLIT_PAYS  # for float32_split
        if precision in _PRECISIONS or pays:
            return _on_tensor_cores(g, a, precision)
    name, splits = _chosen(g, a)
    if name == "v3_register_tile":
        return _register_tile
    return _warps_share_k(splits) if name == "v6_warps_share_k" else _warp_tile(name, splits)


def gemm(
    a: Any,
    b: Any,
    bias: Any,
    saved: Any,
    offset: Any,
    transpose_a: bool,
    transpose_b: bool,
    activation: str | None,
    p: float,
    seed: int,
    gradient: str | None,
    out: Any,
) -> Any:
    """The matrix product; see the package's docstring."""
    return _run(None, a, b, bias, transpose_a, transpose_b, Ending(activation, p, seed, offset, gradient, saved), out)


def _product(a: Any, b: Any, transpose_a: bool = False, end: Ending = NOTHING) -> Any:
    return _run(None, a, b, None, transpose_a, False, end, None)


def linear_backward(
    grad: Any, a: Any, b: Any, y: Any, offset: Any, layer: Layer, wanted: tuple[bool, bool, bool]
) -> tuple[Any, Any, Any]:
    """The three gradients; see the package's docstring."""
    h, sums = _through(grad, y, offset, layer, wanted[2], wanted[0] or wanted[1])
    return (
        _product(h, b) if wanted[0] else None,
        _product(h, a, True) if wanted[1] else None,
        sums,
    )


def linear_layers_backward(
    grad: Any, y: Any, layers: tuple[Layer, ...], wanted: tuple[bool, ...], *arrays: Any
) -> tuple[Any, ...]:
    """All gradients; see the package's docstring.

    The product that gives dL/d(the input of a layer) ends with the dropout and the slope of the layer below.
    """
    s = stack(layers, wanted, arrays)
    top = len(layers) - 1
    of_weights: list[Any] = [None] * len(layers)
    of_biases: list[Any] = [None] * len(layers)
    keep = top > s.last or wanted[0] or s.of_weights[top]
    h, of_biases[top] = _through(grad, y, s.offsets[top], layers[top], s.of_biases[top], keep)
    for i in range(top, s.last - 1, -1):
        if s.of_weights[i]:
            of_weights[i] = _product(h, s.inputs[i], True)
        if i > s.last:
            below, saved = layers[i - 1], s.result(i - 1, y)
            h = _product(
                h, s.weights[i], False, Ending(None, below.p, below.seed, s.offsets[i - 1], below.activation, saved)
            )
            if s.of_biases[i - 1]:
                of_biases[i - 1] = _column_sums(h, None, None, False)[1]
    return _product(h, s.weights[0]) if wanted[0] else None, *of_weights, *of_biases


def _through(grad: Any, y: Any, offset: Any, layer: Layer, sums: bool, keep: bool) -> tuple[Any, Any]:
    """h, the gradient before a layer's dropout and activation, if it is to be kept, and the sums of its columns."""
    if layer.p and (sums or keep):
        grad, y = _dropped(grad, y, offset, layer)
    activation = None if y is None else layer.activation
    if sums:
        return _column_sums(grad, y, activation, keep and activation is not None)
    if activation is None or not keep:
        return grad, None
    if is_half(grad.dtype):  # for which activation_backward has no kernel
        return _column_sums(grad, y, activation, True)[0], None
    return activation_backward(grad, y, activation), None


def _dropped(grad: Any, y: Any, offset: Any, layer: Layer) -> tuple[Any, Any]:
    """``grad`` through dropout, and ``y``; of halves through the activation too, to be rounded once, and no y."""
    if not is_half(grad.dtype):
        return dropout_forward(grad, layer.p, layer.seed, offset), y
    h = dropout_forward(grad.astype(np.float32), layer.p, layer.seed, offset)
    if layer.activation is not None:
        h = activation_backward(h, y.astype(np.float32), layer.activation)
    return h.astype(grad.dtype), None


def _column_sums(grad: Any, y: Any, activation: str | None, keep: bool) -> tuple[Any, Any]:
    """h, which is ``grad`` times the slope of the activation, if it is to be kept, and the sums of its columns.

    Where there are many rows, slices of them are summed by blocks of their own, and then the slices.
    """
    M, N = grad.shape
    h = empty(grad, grad.shape) if keep else None
    across = ceil_div(N, 32)
    count = max(1, min(ceil_div(M, 256), ceil_div(2 * multiprocessors(grad), max(1, across))))
    length = max(1, ceil_div(M, count))
    count = max(1, ceil_div(M, length))
    kernel, kind = _COLUMN_SUMS[grad.dtype], kind_number(activation)
    summed = wide(grad.dtype)
    sums = empty(grad, (N,), summed)
    partials = sums if count == 1 else empty(grad, (count, N), summed)
    kernel((across, count), (32, 32), grad, y, h, partials, M, N, length, kind)
    if count > 1:
        _COLUMN_SUMS[summed]((across, 1), (32, 32), partials, None, None, sums, count, N, count, kind_number(None))
    return (h if keep else grad), sums.astype(grad.dtype, copy=False)


def _by(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run(a, b, bias, transpose_a, transpose_b, end, out)`` with the arguments of :func:`gemm`."""

    def version(
        a: Any, b: Any, bias: Any, saved: Any, offset: Any, transpose_a: bool, transpose_b: bool,
        activation: str | None, p: float, seed: int, gradient: str | None, out: Any,
    ) -> Any:  # fmt: skip
        return run(a, b, bias, transpose_a, transpose_b, Ending(activation, p, seed, offset, gradient, saved), out)

    return version


def _pinned(version: Callable[..., _Plan]) -> Callable[..., Any]:
    return _by(partial(_run, version))


def _hopper(version: HopperVersion) -> Callable[..., Any]:
    return _by(lambda *arguments: wgmma(version, _MAX_Z, *arguments))  # the limit as it is when it runs


VERSIONS = {
    "gemm": {
        "v1_plain": _pinned(_plain),
        "v2_smem_tile": _pinned(_smem_tile),
        "v3_register_tile": _pinned(_register_tile),
        "v5_warp_tile_narrow": _pinned(_warp_tile("v5_warp_tile_narrow")),
        "v5_warp_tile_wide": _pinned(_warp_tile("v5_warp_tile_wide")),
        "v6_warps_share_k": _pinned(_warps_share_k()),
        "v7_split_k": _pinned(_split_k),
        "v4_tensor_core_tf32": _pinned(_tensor_core("tf32")),
        "v4_tensor_core_bf16": _pinned(_tensor_core("bf16")),
        "v4_tensor_core_fp16": _pinned(_tensor_core("fp16")),
        **{
            f"v8_tensor_core_pipelined_{side}_{precision}": _pinned(_pipelined(precision, side))
            for precision in _PRECISIONS
            for side in _SIDES
        },
        **{f"v9_bf16_split_{side}": _pinned(_split(side)) for side in _SIDES},
        **{name: _by(partial(_run_halves, way.rows)) for name, way in HALF_WAYS.items()},
        **{f"v15_tensor_core_split_k_{name}": _pinned(_tensor_core_split_k(name)) for name in _PRECISIONS},
        "v15_float32_split_k": _pinned(_tensor_core_split_k("float32_split")),
        **{name: _hopper(version) for name, version in HOPPER_VERSIONS.items()},
    }
}

#: Versions that are for some GPUs alone.
ARCHITECTURES = dict.fromkeys(HOPPER_VERSIONS, ("sm_90a",))
#: Versions that take float16 and bfloat16, the others do not; and those of them that take nothing else.
FOR_HALVES = (*(name for name, version in HOPPER_VERSIONS.items() if len(version.kernels) > 1), *HALF_WAYS)
ONLY_FOR_HALVES = tuple(HALF_WAYS)
