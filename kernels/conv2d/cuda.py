"""Launcher of the convolution's CUDA kernels: grids, and which version for which shape; :mod:`.tiles` cuts the work."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .._dispatch import current_choice
from .._errors import BackendError
from .._launch import FLOATS, Kernel, ceil_div, empty, result
from .._layout import any_strides, contiguous, is_channels_last
from ..max_pool2d import Geometry as PoolGeometry
from ..max_pool2d.cuda import max_pool2d_forward
from . import Geometry, one_after_the_other, tiles
from . import channels_last as v6
from .channels_last import PRECISIONS

_DIRECT, _TENSOR_CORE = (Path(__file__).with_name(f"conv2d_{name}.cu") for name in ("direct", "tensor_core"))
_TENSOR: dict[str, Any] = {"PRECISION": PRECISIONS.values(), "WARPS_M": (1, 2)}

_FORWARD_PLAIN = Kernel(__file__, "conv2d_forward_v1_plain", T=FLOATS)
_FORWARD_SMEM = Kernel(__file__, "conv2d_forward_v2_smem_tile", T=FLOATS)
_FORWARD_REGISTER = Kernel(__file__, "conv2d_forward_v3_register_tile", T=FLOATS, ROWS=tiles.ROWS)
_FORWARD_DIRECT = Kernel(_DIRECT, "conv2d_forward_v4_direct", T=FLOATS, TAPS=tiles.SIDES)
_FORWARD_TENSOR = Kernel(_TENSOR_CORE, "conv2d_forward_v5_tensor_core", **_TENSOR)
_POOL_DIRECT = Kernel(_DIRECT, "conv2d_relu_pool_forward_v4_direct", T=FLOATS, TAPS=tiles.SIDES)
_INPUT_PLAIN = Kernel(__file__, "conv2d_backward_input_v1_plain", T=FLOATS)
_INPUT_SMEM = Kernel(__file__, "conv2d_backward_input_v2_smem_tile", T=FLOATS)
_INPUT_REGISTER = Kernel(__file__, "conv2d_backward_input_v3_register_tile", T=FLOATS, ROWS=tiles.ROWS)
_INPUT_DIRECT = Kernel(_DIRECT, "conv2d_backward_input_v4_direct", T=FLOATS, TAPS=tiles.SIDES)
_INPUT_TENSOR = Kernel(_TENSOR_CORE, "conv2d_backward_input_v5_tensor_core", **_TENSOR)
_WEIGHT_PLAIN = Kernel(__file__, "conv2d_backward_weight_v1_plain", T=FLOATS)
_WEIGHT_SMEM = Kernel(__file__, "conv2d_backward_weight_v2_smem_tile", T=FLOATS)
_WEIGHT_REGISTER = Kernel(
    __file__, "conv2d_backward_weight_v3_register_tile", T=FLOATS, ROWS=tiles.ROWS, COLS=tiles.COLS
)
_WEIGHT_DIRECT = Kernel(_DIRECT, "conv2d_backward_weight_v4_direct", T=FLOATS, TAPS=tiles.RUNS)
_WEIGHT_TENSOR = Kernel(_TENSOR_CORE, "conv2d_backward_weight_v5_tensor_core", **_TENSOR)
_BIAS = Kernel(__file__, "conv2d_backward_bias", T=FLOATS)
_SUM_SLICES = Kernel(__file__, "conv2d_sum_slices", T=FLOATS)


# ---- which version


def _tensor_precision(g: Geometry, dtype: Any) -> str | None:
    """The precision that the caller allows, if it is lower and there are channels for the tensor cores."""
    precision = _lower_precision(dtype)
    return precision if min(g.C, g.K) // g.G >= 8 else None


def _lower_precision(dtype: Any) -> str | None:
    precision = current_choice().precision
    return precision if precision in PRECISIONS and dtype == np.float32 else None


def _stays_channels_last(g: Geometry, array: Any) -> str | None:
    """The precision in which v6 runs, if it is for this array of activations.

    It is for fewer channels than v5, down to the three of an image.  float32's own precision computes from copies in
    NCHW: so it gives the same bits whatever the strides, in an order in which a following layer takes them as they are.
    """
    precision = _lower_precision(array.dtype)
    fills = g.K // g.G >= 8 and g.C // g.G >= 3
    return precision if precision is not None and fills and is_channels_last(array) else None


def _refuse_unfit(dtype: Any, tile: tiles.Rectangle | tiles.Field | None, precision: str) -> None:
    if dtype != np.float32:
        raise BackendError(f"conv2d: the tensor cores' {precision} takes float32; got {dtype}")
    if tile is None:
        raise BackendError("conv2d: the tensor cores' tile has no room for these strides and dilations")


def _is_direct(side: int, channels: int, terms: int, tile: Any) -> bool:
    """Whether v4 takes a correlation to so many channels of a group, from so many.

    By instructions in the loop, as counted from the source: of 4 channels at 4 positions, v4 has 16 products
    to 2 or 3 other instructions where loops are unrolled, and to about 7 where they are not; v3 has as many
    others as products, but for 64 channels.  A depthwise channel would leave three of four owners idle.
    """
    return tile is not None and channels > 1 and (side > 0 or terms <= 4)


def _fills_rows(channels: int, groups: int) -> bool:
    """Whether the channels of a group fill at least half of the smallest register tile's 16 rows."""
    return channels // groups >= 8


# ---- forward


def _forward_plain(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
    y = result(out, x, g.y_shape)
    _FORWARD_PLAIN[x.dtype](ceil_div(y.size, tiles.THREADS), tiles.THREADS, x, weight, bias, y, g, activation == "relu")
    return y


def _forward_smem(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
    y = result(out, x, g.y_shape)
    t = tiles.smem_forward(g)
    blocks = g.N * g.G * ceil_div(g.P, t.P) * ceil_div(g.Q, t.Q) * ceil_div(g.K // g.G, t.M)
    _FORWARD_SMEM[x.dtype](blocks, t.threads, x, weight, bias, y, g, t, activation == "relu")
    return y


def _forward_register(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
    y = result(out, x, g.y_shape)
    K = g.K // g.G
    rows = tiles.register_rows(K)
    blocks = g.G * ceil_div(K, 8 * rows) * ceil_div(g.N * g.P * g.Q, tiles.WIDTH)
    _FORWARD_REGISTER[x.dtype, rows](blocks, tiles.WIDTH, x, weight, bias, y, g, activation == "relu")
    return y


def _forward_direct(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
    t = tiles.direct_forward(g, x.itemsize)
    if t is None:
        return _forward_smem(x, weight, bias, g, activation, out)
    y = result(out, x, g.y_shape)
    blocks = g.N * g.G * t.blocks * ceil_div(g.K // g.G, t.M * tiles.OWN)
    kernel = _FORWARD_DIRECT[x.dtype, tiles.side(tiles.forward_axes(g))]
    kernel(blocks, t.threads, x, weight, bias, y, g, t, activation == "relu")
    return y


def _forward_tensor(precision: str) -> Callable[..., Any]:
    def forward(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
        t = tiles.tensor_forward(g, precision)
        _refuse_unfit(x.dtype, t, precision)
        assert t is not None
        y = result(out, x, g.y_shape)
        K, warps = g.K // g.G, tiles.warps_high(g.K // g.G)
        blocks = g.N * g.G * ceil_div(g.P, t.P) * ceil_div(g.Q, t.Q) * ceil_div(K, 32 * warps)
        kernel = _FORWARD_TENSOR[PRECISIONS[precision], warps]
        kernel(blocks, 128, x, weight, bias, y, g, t, activation == "relu")
        return y

    return forward


@any_strides
def conv2d_forward(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    precision = _stays_channels_last(g, x)
    run = _forward_contiguous if precision is None else v6.forward(precision)
    return run(x, weight, bias, g, activation, out)


def _forward(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
    return _forward_chosen(g, x.dtype)(x, weight, bias, g, activation, out)


_forward_contiguous = contiguous(_forward, conv2d_forward, "c_contiguous")


def _forward_chosen(g: Geometry, dtype: Any) -> Callable[..., Any]:
    precision = _tensor_precision(g, dtype)
    if precision is not None and tiles.tensor_forward(g, precision) is not None:
        return _forward_tensor(precision)
    return _forward_default(g, dtype.itemsize)


@functools.lru_cache(maxsize=1024)
def _forward_default(g: Geometry, itemsize: int) -> Callable[..., Any]:
    if _is_direct(tiles.side(tiles.forward_axes(g)), g.K // g.G, g.C // g.G, tiles.direct_forward(g, itemsize)):
        return _forward_direct
    return _forward_register if _fills_rows(g.K, g.G) else _forward_smem


def _pooled(version: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """``version`` of the convolution with ReLU, and the pooling in a launch of its own."""

    def forward(x: Any, weight: Any, bias: Any, g: Geometry, p: PoolGeometry) -> tuple[Any, Any]:
        return max_pool2d_forward(version(x, weight, bias, g, "relu", None), p, None)

    return forward


def _pool_direct(x: Any, weight: Any, bias: Any, g: Geometry, p: PoolGeometry) -> tuple[Any, Any]:
    """In one launch where windows are 2 x 2 and lie side by side, else in two."""
    t = tiles.direct_pool(g, p, x.itemsize)
    if t is None:
        return _pooled(_forward_direct)(x, weight, bias, g, p)
    y, codes = empty(x, p.y_shape), empty(x, p.y_shape, p.code_dtype)
    blocks = g.N * g.G * t.blocks * ceil_div(g.K // g.G, t.M * tiles.OWN)
    kernel = _POOL_DIRECT[x.dtype, tiles.side(tiles.forward_axes(g))]
    kernel(blocks, t.threads, x, weight, bias, y, codes, g, t)
    return y, codes


def conv2d_relu_pool_forward(x: Any, weight: Any, bias: Any, g: Geometry, p: PoolGeometry) -> tuple[Any, Any]:
    """As the reference's: in one launch where v4 can, which spares writing and reading what is pooled."""
    if _tensor_precision(g, x.dtype) is None and tiles.direct_pool(g, p, x.itemsize) is not None:
        return _pool_direct(x, weight, bias, g, p)
    return _pooled(_forward_chosen(g, x.dtype))(x, weight, bias, g, p)


# ---- gradient of the input


def _input_plain(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    dx = result(out, grad, g.x_shape)
    _INPUT_PLAIN[grad.dtype](ceil_div(dx.size, tiles.THREADS), tiles.THREADS, grad, y, weight, dx, g)
    return dx


def _input_smem(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    dx = result(out, grad, g.x_shape)
    t = tiles.smem_input(g)
    down, across = tiles.input_axes(g)
    blocks = tiles.classes(g) * g.N * g.G * ceil_div(down.positions, t.P) * ceil_div(across.positions, t.Q)
    _INPUT_SMEM[grad.dtype](blocks * ceil_div(g.C // g.G, t.M), t.threads, grad, y, weight, dx, g, t)
    return dx


def _input_register(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    dx = result(out, grad, g.x_shape)
    C = g.C // g.G
    rows = tiles.register_rows(C)
    down, across = tiles.input_axes(g)
    positions = g.N * down.positions * across.positions
    blocks = tiles.classes(g) * g.G * ceil_div(C, 8 * rows) * ceil_div(positions, tiles.WIDTH)
    _INPUT_REGISTER[grad.dtype, rows](blocks, tiles.WIDTH, grad, y, weight, dx, g)
    return dx


def _input_direct(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    t = tiles.direct_input(g, grad.itemsize)
    if t is None:
        return _input_smem(grad, weight, g, y, out)
    dx = result(out, grad, g.x_shape)
    blocks = tiles.classes(g) * g.N * g.G * t.blocks * ceil_div(g.C // g.G, t.M * tiles.OWN)
    _INPUT_DIRECT[grad.dtype, tiles.side(tiles.input_axes(g)) if g.stride == (1, 1) else 0](
        blocks, t.threads, grad, y, weight, dx, g, t
    )
    return dx


def _input_tensor(precision: str) -> Callable[..., Any]:
    def backward(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
        t = tiles.tensor_input(g, precision)
        _refuse_unfit(grad.dtype, t, precision)
        assert t is not None
        dx = result(out, grad, g.x_shape)
        C, warps = g.C // g.G, tiles.warps_high(g.C // g.G)
        down, across = tiles.input_axes(g)
        blocks = tiles.classes(g) * g.N * g.G * ceil_div(down.positions, t.P) * ceil_div(across.positions, t.Q)
        kernel = _INPUT_TENSOR[PRECISIONS[precision], warps]
        kernel(blocks * ceil_div(C, 32 * warps), 128, grad, y, weight, dx, g, t)
        return dx

    return backward


@any_strides
def conv2d_backward_input(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    precision = _stays_channels_last(g, grad)
    run = _input_contiguous if precision is None else v6.backward_input(precision)
    return run(grad, weight, g, y, out)


def _input(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    precision = _tensor_precision(g, grad.dtype)
    if precision is not None and tiles.tensor_input(g, precision) is not None:
        return _input_tensor(precision)(grad, weight, g, y, out)
    return _input_default(g, grad.itemsize)(grad, weight, g, y, out)


_input_contiguous = contiguous(_input, conv2d_backward_input, "c_contiguous")


@functools.lru_cache(maxsize=1024)
def _input_default(g: Geometry, itemsize: int) -> Callable[..., Any]:
    side = tiles.side(tiles.input_axes(g)) if g.stride == (1, 1) else 0
    if _is_direct(side, g.C // g.G, g.K // g.G, tiles.direct_input(g, itemsize)):
        return _input_direct
    return _input_register if _fills_rows(g.C, g.G) else _input_smem


# ---- gradients of the weights and of the bias


def _summed(like: Any, slices: int, dw: Any, launch: Callable[[Any], None]) -> Any:
    """Have `launch` write one partial sum of `dw` per slice, and add them up."""
    partials = dw if slices == 1 else empty(like, (slices, *dw.shape))
    launch(partials)
    if slices > 1:
        _SUM_SLICES[like.dtype](ceil_div(dw.size, 32), (32, 8), partials, dw, slices, dw.size)
    return dw


def _weight_plain(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    dw = result(out, x, g.weight_shape)
    slices, length = tiles.slices(g.N * g.P, g.N * g.P * g.Q, ceil_div(dw.size, tiles.THREADS), dw.size)
    blocks = ceil_div(slices * dw.size, tiles.THREADS)
    kernel = _WEIGHT_PLAIN[x.dtype]
    return _summed(
        x, slices, dw, lambda partials: kernel(blocks, tiles.THREADS, x, grad, y, partials, g, slices, length)
    )


def _weight_smem(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    dw = result(out, x, g.weight_shape)
    t = tiles.smem_weight(g)
    blocks = g.G * ceil_div(g.K // g.G, t.M) * ceil_div(g.C // g.G, t.C) * ceil_div(g.R, t.R) * ceil_div(g.S, t.S)
    slices, length = tiles.slices(g.N * ceil_div(g.P, t.P) * ceil_div(g.Q, t.Q), g.N * g.P * g.Q, blocks, dw.size)
    kernel = _WEIGHT_SMEM[x.dtype]
    return _summed(
        x, slices, dw, lambda partials: kernel(slices * blocks, tiles.THREADS, x, grad, y, partials, g, t, length)
    )


def _weight_register(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    dw = result(out, x, g.weight_shape)
    K, taps, positions = g.K // g.G, g.C // g.G * g.R * g.S, g.N * g.P * g.Q
    rows, cols = tiles.register_rows(K), tiles.register_cols(taps)
    blocks = g.G * ceil_div(K, 8 * rows) * ceil_div(taps, 16 * cols)
    slices, length = tiles.slices(positions, positions, blocks, dw.size)
    kernel = _WEIGHT_REGISTER[x.dtype, rows, cols]
    return _summed(
        x, slices, dw, lambda partials: kernel(slices * blocks, tiles.WIDTH, x, grad, y, partials, g, length)
    )


def _weight_direct(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    t = tiles.direct_weight(g, x.itemsize)
    if t is None:
        return _weight_smem(x, grad, g, y, out)
    dw = result(out, x, g.weight_shape)
    runs = g.C // g.G * g.R * g.S // tiles.run(g)
    blocks = g.G * ceil_div(g.K // g.G, t.M * tiles.OWN) * ceil_div(runs, t.U)
    slices, length = tiles.slices(g.N * ceil_div(g.P, t.P) * ceil_div(g.Q, t.Q), g.N * g.P * g.Q, blocks, dw.size)
    kernel = _WEIGHT_DIRECT[x.dtype, tiles.run(g)]
    return _summed(
        x, slices, dw, lambda partials: kernel(slices * blocks, tiles.THREADS, x, grad, y, partials, g, t, length)
    )


def _weight_tensor(precision: str) -> Callable[..., Any]:
    def backward(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
        t = tiles.tensor_weight(g, precision)
        _refuse_unfit(x.dtype, t, precision)
        assert t is not None
        dw = result(out, x, g.weight_shape)
        K, warps = g.K // g.G, tiles.warps_high(g.K // g.G)
        groups = ceil_div(g.C // g.G, 8) * g.R * g.S
        blocks = g.G * ceil_div(groups, 4 // warps * t.groups) * ceil_div(K, 32 * warps)
        rectangles = g.N * ceil_div(g.P, t.P) * ceil_div(g.Q, t.Q)
        slices, length = tiles.slices(rectangles, g.N * g.P * g.Q, blocks, dw.size)
        kernel = _WEIGHT_TENSOR[PRECISIONS[precision], warps]
        return _summed(x, slices, dw, lambda partials: kernel(slices * blocks, 128, x, grad, y, partials, g, t, length))

    return backward


@any_strides
def conv2d_backward_weight(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    precision = _stays_channels_last(g, x)
    run = _weight_contiguous if precision is None else v6.backward_weight(precision, _summed)
    return run(x, grad, g, y, out)


def _weight(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    precision = _tensor_precision(g, x.dtype)
    if precision is not None and tiles.tensor_weight(g, precision) is not None:
        return _weight_tensor(precision)(x, grad, g, y, out)
    return _weight_default(g, x.itemsize)(x, grad, g, y, out)


_weight_contiguous = contiguous(_weight, conv2d_backward_weight, "c_contiguous")


@functools.lru_cache(maxsize=1024)
def _weight_default(g: Geometry, itemsize: int) -> Callable[..., Any]:
    """v4 where a thread has a row of taps, and filters are too few to fill the largest register tile."""
    direct = tiles.run(g) > 1 and 1 < g.K // g.G <= 32 and tiles.direct_weight(g, itemsize) is not None
    if direct:
        return _weight_direct
    return _weight_register if _fills_rows(g.K, g.G) else _weight_smem


@any_strides
def conv2d_backward_bias(grad: Any, y: Any, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    if is_channels_last(grad) and _lower_precision(grad.dtype) is not None:
        return v6.backward_bias(grad, y, out, _summed)
    return _bias_contiguous(grad, y, out)


def _bias(grad: Any, y: Any, out: Any) -> Any:
    N, K, P, Q = grad.shape
    db = result(out, grad, (K,))
    slices, length = tiles.slices(N * P * Q, N * P * Q, K, K, least=4 * tiles.THREADS)
    kernel = _BIAS[grad.dtype]
    return _summed(grad, slices, db, lambda p: kernel(slices * K, tiles.THREADS, grad, y, p, N, K, P * Q, length))


_bias_contiguous = contiguous(_bias, conv2d_backward_bias, "c_contiguous")


@any_strides
def conv2d_backward_parameters(x: Any, grad: Any, g: Geometry, y: Any) -> tuple[Any, Any]:
    """As the reference's; see the package's docstring."""
    return conv2d_backward_weight(x, grad, g, y, None), conv2d_backward_bias(grad, y, None)


VERSIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "conv2d_relu_pool_forward": {
        "v1_plain": _pooled(_forward_plain),
        "v2_smem_tile": _pooled(_forward_smem),
        "v3_register_tile": _pooled(_forward_register),
        "v4_direct": _pool_direct,
    },
    "conv2d_forward": {
        "v1_plain": _forward_plain,
        "v2_smem_tile": _forward_smem,
        "v3_register_tile": _forward_register,
        "v4_direct": _forward_direct,
        **{f"v5_tensor_core_{name}": _forward_tensor(name) for name in PRECISIONS},
        **{f"v6_channels_last_{name}": v6.forward(name) for name in PRECISIONS},
    },
    "conv2d_backward_input": {
        "v1_plain": _input_plain,
        "v2_smem_tile": _input_smem,
        "v3_register_tile": _input_register,
        "v4_direct": _input_direct,
        **{f"v5_tensor_core_{name}": _input_tensor(name) for name in PRECISIONS},
        **{f"v6_channels_last_{name}": v6.backward_input(name) for name in PRECISIONS},
    },
    "conv2d_backward_weight": {
        "v1_plain": _weight_plain,
        "v2_smem_tile": _weight_smem,
        "v3_register_tile": _weight_register,
        "v4_direct": _weight_direct,
        **{f"v5_tensor_core_{name}": _weight_tensor(name) for name in PRECISIONS},
        **{f"v6_channels_last_{name}": v6.backward_weight(name, _summed) for name in PRECISIONS},
    },
}
VERSIONS["conv2d_backward_parameters"] = {
    name: any_strides(
        one_after_the_other(contiguous(version, conv2d_backward_weight, "c_contiguous"), conv2d_backward_bias)
    )
    for name, version in VERSIONS["conv2d_backward_weight"].items()
}
