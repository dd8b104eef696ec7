"""Launcher of conv2d.cu: grids, tiles, slices, and which version for which shape."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .._launch import FLOATS, Kernel, ceil_div, empty, result
from ..activation.cuda import activation_backward, activation_forward
from ..max_pool2d import Geometry as PoolGeometry
from ..max_pool2d.cuda import max_pool2d_forward
from . import Geometry

_THREADS = 256  # of a block of v1 and v2
#: A register tile (v3) has eight times as many rows and 16 times as many columns as one thread owns of it.
_ROWS = (2, 3, 4, 8)
_COLS = (2, 8)
#: Columns of a register tile where they are positions: one for each of its threads.
_WIDTH = 128
#: What ``Stage`` in conv2d.cu holds: numbers of the patch, and others.
_PATCH, _OTHER = 4096, 2048

_FORWARD_PLAIN = Kernel(__file__, "conv2d_forward_v1_plain", T=FLOATS)
_FORWARD_SMEM = Kernel(__file__, "conv2d_forward_v2_smem_tile", T=FLOATS)
_FORWARD_REGISTER = Kernel(__file__, "conv2d_forward_v3_register_tile", T=FLOATS, ROWS=_ROWS)
_INPUT_PLAIN = Kernel(__file__, "conv2d_backward_input_v1_plain", T=FLOATS)
_INPUT_SMEM = Kernel(__file__, "conv2d_backward_input_v2_smem_tile", T=FLOATS)
_INPUT_REGISTER = Kernel(__file__, "conv2d_backward_input_v3_register_tile", T=FLOATS, ROWS=_ROWS)
_WEIGHT_PLAIN = Kernel(__file__, "conv2d_backward_weight_v1_plain", T=FLOATS)
_WEIGHT_SMEM = Kernel(__file__, "conv2d_backward_weight_v2_smem_tile", T=FLOATS)
_WEIGHT_REGISTER = Kernel(__file__, "conv2d_backward_weight_v3_register_tile", T=FLOATS, ROWS=_ROWS, COLS=_COLS)
_BIAS = Kernel(__file__, "conv2d_backward_bias", T=FLOATS)
_SUM_SLICES = Kernel(__file__, "conv2d_sum_slices", T=FLOATS)


# ---- how the work is cut


class _Axis(NamedTuple):
    """One axis of a correlation, as in conv2d.cu."""

    positions: int
    taps: int
    stride: int
    dilation: int


def _forward_axes(g: Geometry) -> list[_Axis]:
    return [_Axis(*sizes) for sizes in zip((g.P, g.Q), (g.R, g.S), g.stride, g.dilation, strict=True)]


def _input_axes(g: Geometry) -> list[_Axis]:
    """Those of dx, in the class of rows and columns that has the most positions and taps."""
    axes = []
    for size, taps, stride, dilation in zip((g.H, g.W), (g.R, g.S), g.stride, g.dilation, strict=True):
        common = math.gcd(stride, dilation)
        axes.append(_Axis(ceil_div(size, stride), ceil_div(taps, stride // common), 1, dilation // common))
    return axes


class _Tile(NamedTuple):
    """``Tile`` of conv2d.cu."""

    P: int
    Q: int
    M: int
    C: int
    R: int
    S: int

    @property
    def threads(self) -> int:
        """Of a block in which each owns one result."""
        return self.M * self.P * self.Q


def _patch(axes: list[_Axis], positions: list[int], taps: list[int]) -> int:
    """Elements of one channel under these positions."""
    return math.prod(
        (p - 1) * axis.stride + (t - 1) * axis.dilation + 1 for axis, p, t in zip(axes, positions, taps, strict=True)
    )


def _fit(positions: list[int], taps: list[int], fits: Callable[[], bool]) -> None:
    """Halve `positions`, and when they are all 1 `taps`, until ``fits()``."""
    while not fits():
        sizes = positions if max(positions) > 1 else taps
        sizes[sizes.index(max(sizes))] //= 2


def _positions(axes: list[_Axis]) -> list[int]:
    """Of a tile: equal parts of each axis, at most 16 x 16."""
    return [max(1, ceil_div(axis.positions, max(1, ceil_div(axis.positions, 16)))) for axis in axes]


def _correlation_tile(axes: list[_Axis], M: int, C: int) -> _Tile:
    """As many result channels as there are threads for, as many input channels as fit."""
    positions, taps = _positions(axes), [axis.taps for axis in axes]
    _fit([1], taps, lambda: math.prod(taps) <= _OTHER)
    _fit(positions, taps, lambda: _patch(axes, positions, taps) <= _PATCH)
    channels = max(1, min(M, _THREADS // math.prod(positions), _OTHER // math.prod(taps)))
    depth = min(C, _PATCH // _patch(axes, positions, taps), _OTHER // (channels * math.prod(taps)))
    (P, Q), (R, S) = positions, taps
    return _Tile(P, Q, channels, max(1, depth), R, S)


@functools.lru_cache(maxsize=1024)
def _forward_tile(g: Geometry) -> _Tile:
    return _correlation_tile(_forward_axes(g), g.K // g.G, g.C // g.G)


@functools.lru_cache(maxsize=1024)
def _input_tile(g: Geometry) -> _Tile:
    return _correlation_tile(_input_axes(g), g.C // g.G, g.K // g.G)


@functools.lru_cache(maxsize=1024)
def _weight_tile(g: Geometry) -> _Tile:
    """As many weights as there are threads, filters and channels about evenly; positions as fit."""
    axes, K, C = _forward_axes(g), max(1, g.K // g.G), max(1, g.C // g.G)
    positions, taps = _positions(axes), [axis.taps for axis in axes]
    _fit([1], taps, lambda: math.prod(taps) <= _THREADS)
    room = _THREADS // math.prod(taps)
    filters = min(K, room // min(C, math.isqrt(room)))
    channels = min(C, room // filters)
    _fit(
        positions,
        taps,
        lambda: channels * _patch(axes, positions, taps) <= _PATCH and filters * math.prod(positions) <= _OTHER,
    )
    (P, Q), (R, S) = positions, taps
    return _Tile(P, Q, filters, channels, R, S)


def _slices(units: int, positions: int, blocks: int, size: int, least: int = 128) -> tuple[int, int]:
    """Into how many slices a sum over `positions`, in so many `units`, is cut, and the units of each.

    Enough to fill a large GPU when each takes `blocks`, but none of fewer than `least` positions; and none
    of more than 8192, since a chain of so many additions begins to cost float32 its digits, unless the
    slices of a result of `size` numbers would then take gigabytes.
    """
    filling = min(ceil_div(256, max(1, blocks)), ceil_div(positions, least))
    wanted = max(1, min(max(filling, ceil_div(positions, 8192)), 2**28 // max(1, size)))
    length = max(1, ceil_div(units, wanted))
    return max(1, ceil_div(units, length)), length


def _rows(channels: int) -> int:
    """The rows per thread that cost least: r units for multiplying and about 2 for fetching, per tile."""
    return min(_ROWS, key=lambda r: ceil_div(channels, 8 * r) * (r + 2))


def _cols(taps: int) -> int:
    return min(_COLS, key=lambda c: ceil_div(taps, 16 * c) * (c + 2))


# ---- forward


def _then_activation(version: Callable[..., Any]) -> Callable[..., Any]:
    """``version`` of the forward pass with an activation behind it, in a launch of its own."""

    @functools.wraps(version)
    def forward(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
        if activation is None:
            return version(x, weight, bias, g, out)
        return activation_forward(version(x, weight, bias, g, None), activation, (), out)

    return forward


def _before_relu(grad: Any, y: Any) -> Any:
    """The gradient in front of the ReLU that gave ``y``, if there is one."""
    return grad if y is None else activation_backward(grad, y, "relu", ())


@_then_activation
def _forward_plain(x: Any, weight: Any, bias: Any, g: Geometry, out: Any) -> Any:
    y = result(out, x, g.y_shape)
    _FORWARD_PLAIN[x.dtype](ceil_div(y.size, _THREADS), _THREADS, x, weight, bias, y, g)
    return y


@_then_activation
def _forward_smem(x: Any, weight: Any, bias: Any, g: Geometry, out: Any) -> Any:
    y = result(out, x, g.y_shape)
    t = _forward_tile(g)
    blocks = g.N * g.G * ceil_div(g.P, t.P) * ceil_div(g.Q, t.Q) * ceil_div(g.K // g.G, t.M)
    _FORWARD_SMEM[x.dtype](blocks, t.threads, x, weight, bias, y, g, t)
    return y


@_then_activation
def _forward_register(x: Any, weight: Any, bias: Any, g: Geometry, out: Any) -> Any:
    y = result(out, x, g.y_shape)
    K = g.K // g.G
    rows = _rows(K)
    blocks = g.G * ceil_div(K, 8 * rows) * ceil_div(g.N * g.P * g.Q, _WIDTH)
    _FORWARD_REGISTER[x.dtype, rows](blocks, _WIDTH, x, weight, bias, y, g)
    return y


def conv2d_forward(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    version = _forward_register if _fills_rows(g.K, g.G) else _forward_smem
    return version(x, weight, bias, g, activation, out)


def conv2d_relu_pool_forward(x: Any, weight: Any, bias: Any, g: Geometry, p: PoolGeometry) -> tuple[Any, Any]:
    """As the reference's, in three launches."""
    return max_pool2d_forward(conv2d_forward(x, weight, bias, g, "relu", None), p, None)


def _fills_rows(channels: int, groups: int) -> bool:
    """Whether the channels of a group fill at least half of the smallest register tile's 16 rows."""
    return channels // groups >= 8


# ---- gradient of the input


def _input_plain(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    grad = _before_relu(grad, y)
    dx = result(out, grad, g.x_shape)
    _INPUT_PLAIN[grad.dtype](ceil_div(dx.size, _THREADS), _THREADS, grad, weight, dx, g)
    return dx


def _input_smem(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    grad = _before_relu(grad, y)
    dx = result(out, grad, g.x_shape)
    t = _input_tile(g)
    down, across = _input_axes(g)
    blocks = _classes(g) * g.N * g.G * ceil_div(down.positions, t.P) * ceil_div(across.positions, t.Q)
    _INPUT_SMEM[grad.dtype](blocks * ceil_div(g.C // g.G, t.M), t.threads, grad, weight, dx, g, t)
    return dx


def _input_register(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    grad = _before_relu(grad, y)
    dx = result(out, grad, g.x_shape)
    C = g.C // g.G
    rows = _rows(C)
    down, across = _input_axes(g)
    positions = g.N * down.positions * across.positions
    blocks = _classes(g) * g.G * ceil_div(C, 8 * rows) * ceil_div(positions, _WIDTH)
    _INPUT_REGISTER[grad.dtype, rows](blocks, _WIDTH, grad, weight, dx, g)
    return dx


def _classes(g: Geometry) -> int:
    """Classes of rows and columns of dx that meet different taps; a stride beyond the input has empty ones."""
    return min(g.stride[0], g.H) * min(g.stride[1], g.W)


def conv2d_backward_input(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    version = _input_register if _fills_rows(g.C, g.G) else _input_smem
    return version(grad, weight, g, y, out)


# ---- gradients of the weights and of the bias


def _summed(like: Any, slices: int, dw: Any, launch: Callable[[Any], None]) -> Any:
    """Have `launch` write one partial sum of `dw` per slice, and add them up."""
    partials = dw if slices == 1 else empty(like, (slices, *dw.shape))
    launch(partials)
    if slices > 1:
        _SUM_SLICES[like.dtype](ceil_div(dw.size, 32), (32, 8), partials, dw, slices, dw.size)
    return dw


def _weight_plain(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    grad = _before_relu(grad, y)
    dw = result(out, x, g.weight_shape)
    slices, length = _slices(g.N * g.P, g.N * g.P * g.Q, ceil_div(dw.size, _THREADS), dw.size)
    blocks = ceil_div(slices * dw.size, _THREADS)
    kernel = _WEIGHT_PLAIN[x.dtype]
    return _summed(x, slices, dw, lambda partials: kernel(blocks, _THREADS, x, grad, partials, g, slices, length))


def _weight_smem(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    grad = _before_relu(grad, y)
    dw = result(out, x, g.weight_shape)
    t = _weight_tile(g)
    blocks = g.G * ceil_div(g.K // g.G, t.M) * ceil_div(g.C // g.G, t.C) * ceil_div(g.R, t.R) * ceil_div(g.S, t.S)
    slices, length = _slices(g.N * ceil_div(g.P, t.P) * ceil_div(g.Q, t.Q), g.N * g.P * g.Q, blocks, dw.size)
    kernel = _WEIGHT_SMEM[x.dtype]
    return _summed(x, slices, dw, lambda partials: kernel(slices * blocks, _THREADS, x, grad, partials, g, t, length))


def _weight_register(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    grad = _before_relu(grad, y)
    dw = result(out, x, g.weight_shape)
    K, taps, positions = g.K // g.G, g.C // g.G * g.R * g.S, g.N * g.P * g.Q
    rows, cols = _rows(K), _cols(taps)
    blocks = g.G * ceil_div(K, 8 * rows) * ceil_div(taps, 16 * cols)
    slices, length = _slices(positions, positions, blocks, dw.size)
    kernel = _WEIGHT_REGISTER[x.dtype, rows, cols]
    return _summed(x, slices, dw, lambda partials: kernel(slices * blocks, _WIDTH, x, grad, partials, g, length))


def conv2d_backward_weight(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    version = _weight_register if _fills_rows(g.K, g.G) else _weight_smem
    return version(x, grad, g, y, out)


def conv2d_backward_bias(grad: Any, y: Any, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    grad = _before_relu(grad, y)
    N, K, P, Q = grad.shape
    db = result(out, grad, (K,))
    slices, length = _slices(N * P * Q, N * P * Q, K, K, least=4 * _THREADS)
    kernel = _BIAS[grad.dtype]
    return _summed(grad, slices, db, lambda p: kernel(slices * K, _THREADS, grad, p, N, K, P * Q, length))


VERSIONS = {
    "conv2d_forward": {
        "v1_plain": _forward_plain,
        "v2_smem_tile": _forward_smem,
        "v3_register_tile": _forward_register,
    },
    "conv2d_backward_input": {
        "v1_plain": _input_plain,
        "v2_smem_tile": _input_smem,
        "v3_register_tile": _input_register,
    },
    "conv2d_backward_weight": {
        "v1_plain": _weight_plain,
        "v2_smem_tile": _weight_smem,
        "v3_register_tile": _weight_register,
    },
}
