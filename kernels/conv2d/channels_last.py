"""Launcher of what takes channels-last arrays: x, y and their gradients lie in memory as (N, H, W, C).

An array that lies otherwise is copied first.  The weights, which are small, are put in the order of the kernel by a
copy in each call: (K, R, S, C/G) for y, which channels-last weights need not, and (C, R, S, K/G) for dx.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .._contracts import deliver
from .._devices import device_of
from .._errors import BackendError
from .._launch import FLOATS, Kernel, ceil_div, empty
from .._layout import any_strides, channels_last, fits_channels_last
from . import Geometry, tiles

_SOURCE = Path(__file__).with_name("conv2d_channels_last.cu")
#: The template argument PRECISION.
PRECISIONS = {"tf32": 0, "bf16": 1, "fp16": 2}
_TEMPLATES: dict[str, Any] = {"PRECISION": PRECISIONS.values(), "COLUMNS": tiles.COLUMNS}
_FORWARD = Kernel(_SOURCE, "conv2d_forward_v6_channels_last", **_TEMPLATES)
_INPUT = Kernel(_SOURCE, "conv2d_backward_input_v6_channels_last", **_TEMPLATES)
_WEIGHT = Kernel(_SOURCE, "conv2d_backward_weight_v6_channels_last", **_TEMPLATES)
_BIAS = Kernel(__file__, "conv2d_backward_bias_channels_last", T=FLOATS)


def forward(precision: str) -> Callable[..., Any]:
    """``conv2d_forward`` in this precision; y is channels-last, unless ``out`` is not."""

    @any_strides
    def run(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
        _refuse_others(x.dtype, precision)
        y, K = _result(out, x, g.y_shape), g.K // g.G
        x, weight = channels_last("conv2d_forward", x), channels_last("conv2d_forward", weight)
        columns = tiles.columns(K)
        blocks = g.G * ceil_div(K, columns) * ceil_div(g.N * g.P * g.Q, tiles.LONG)
        kernel, bias = _FORWARD[PRECISIONS[precision], columns], None if bias is None else _contiguous(bias)
        kernel(blocks, tiles.LONG, x, weight, bias, _view(y), g, tiles.panel(g.C // g.G), activation == "relu")
        return _delivered(y, out)

    return run


def backward_input(precision: str) -> Callable[..., Any]:
    """``conv2d_backward_input`` likewise."""

    @any_strides
    def run(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
        _refuse_others(grad.dtype, precision)
        dx, C = _result(out, grad, g.x_shape), g.C // g.G
        grad, y = channels_last("conv2d_backward_input", grad), _gate("conv2d_backward_input", y)
        weight = weight.reshape(g.G, g.K // g.G, C, g.R, g.S).transpose(0, 2, 3, 4, 1)  # (G, C/G, R, S, K/G)
        columns, (down, across) = tiles.columns(C), tiles.input_axes(g)
        positions = g.N * down.positions * across.positions
        blocks = tiles.classes(g) * g.G * ceil_div(C, columns) * ceil_div(positions, tiles.LONG)
        kernel = _INPUT[PRECISIONS[precision], columns]
        kernel(blocks, tiles.LONG, grad, y, _contiguous(weight), _view(dx), g, tiles.panel(g.K // g.G))
        return _delivered(dx, out)

    return run


def backward_weight(precision: str, summed: Callable[..., Any]) -> Callable[..., Any]:
    """``conv2d_backward_weight`` likewise; dw is C-contiguous.

    Args:
        summed: has a launch write partial sums, and adds them up.
    """

    @any_strides
    def run(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
        _refuse_others(x.dtype, precision)
        name = "conv2d_backward_weight"
        x, grad, y = channels_last(name, x), channels_last(name, grad), _gate(name, y)
        dw = _contiguous_result(out, x, g.weight_shape)
        K, padded, positions = g.K // g.G, 4 * ceil_div(g.C // g.G, 4), g.N * g.P * g.Q
        columns = tiles.columns(K)
        blocks = g.G * ceil_div(K, columns) * ceil_div(g.R * g.S * padded, tiles.LONG)
        slices, length = tiles.slices(ceil_div(positions, tiles.DEPTH), positions, blocks, dw.size)
        kernel = _WEIGHT[PRECISIONS[precision], columns]
        summed(
            x,
            slices,
            dw,
            lambda partials: kernel(slices * blocks, tiles.LONG, x, grad, y, partials, g, length * tiles.DEPTH),
        )
        return _delivered(dw, out)

    return run


def backward_bias(grad: Any, y: Any, out: Any, summed: Callable[..., Any]) -> Any:
    """``conv2d_backward_bias`` of a channels-last ``grad``: sums of float32, in another order than those of NCHW."""
    grad, y = channels_last("conv2d_backward_bias", grad), _gate("conv2d_backward_bias", y)
    N, P, Q, K = grad.shape
    db = _contiguous_result(out, grad, (K,))
    blocks, positions = ceil_div(K, 32), N * P * Q
    slices, length = tiles.slices(positions, positions, blocks, K, least=4 * tiles.THREADS)
    kernel = _BIAS[grad.dtype]
    summed(grad, slices, db, lambda p: kernel(slices * blocks, (32, 8), grad, y, p, K, positions, length))
    return _delivered(db, out)


def _refuse_others(dtype: Any, precision: str) -> None:
    if dtype != np.float32:
        raise BackendError(f"conv2d: the tensor cores' {precision} takes float32; got {dtype}")


def _result(out: Any, like: Any, shape: tuple[int, int, int, int]) -> Any:
    """``out`` if it is channels-last, else a new array."""
    if out is not None and fits_channels_last(out):
        return out
    N, C, H, W = shape
    return empty(like, (N, H, W, C)).transpose(0, 3, 1, 2)


def _contiguous_result(out: Any, like: Any, shape: tuple[int, ...]) -> Any:
    return out if out is not None and out.flags.c_contiguous else empty(like, shape)


def _view(array: Any) -> Any:
    return array.transpose(0, 2, 3, 1)


def _delivered(result: Any, out: Any) -> Any:
    return result if result is out else deliver(result, out)


def _gate(name: str, y: Any) -> Any:
    return None if y is None else channels_last(name, y)


def _contiguous(array: Any) -> Any:
    return array if array.flags.c_contiguous else device_of(array).array_module.ascontiguousarray(array)
