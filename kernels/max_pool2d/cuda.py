"""Launcher of max_pool2d.cu: grids, and which version for which shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from .._launch import FLOATS, Kernel, ceil_div, empty, result
from .._windows import Tile, check_32_bits, staged_tile
from . import Geometry

_TEMPLATES: dict[str, Any] = {"T": FLOATS, "Code": (np.dtype(np.uint8), np.dtype(np.int32))}
#: 2 and 3: windows of that size with stride 2 and no dilation; 0: any.
_WINDOWS = (0, 2, 3)

_FORWARD_PLAIN = Kernel(__file__, "max_pool2d_forward_v1_plain", **_TEMPLATES)
_FORWARD_SMEM_TILE = Kernel(__file__, "max_pool2d_forward_v2_smem_tile", **_TEMPLATES)
_FORWARD_REGISTER_TILE = Kernel(__file__, "max_pool2d_forward_v3_register_tile", **_TEMPLATES, WINDOW=_WINDOWS)
_BACKWARD_PLAIN = Kernel(__file__, "max_pool2d_backward_v1_plain", **_TEMPLATES)
_BACKWARD_SMEM_TILE = Kernel(__file__, "max_pool2d_backward_v2_smem_tile", **_TEMPLATES)
_BACKWARD_REGISTER_TILE = Kernel(__file__, "max_pool2d_backward_v3_register_tile", **_TEMPLATES, WINDOW=_WINDOWS)
_GATHER = Kernel(__file__, "max_pool2d_gather", **_TEMPLATES)

# As in max_pool2d.cu.
_THREADS = 256
_STAGED_ELEMENTS, _STAGED_WINDOWS = 4096, 2048
_OWN = 4
#: Where tiles have fewer elements, most threads of a v2_smem_tile block would only stage.
_LEAST_TILE = 64

#: Takes the two inputs and the result of the pass, or the input and its two results, and the sizes.
Version = Callable[[Any, Any, Any, Geometry], None]


@lru_cache(maxsize=1024)
def _window(g: Geometry) -> int:
    """The template parameter WINDOW, once the sizes are known to be fit for 32 bits."""
    check_32_bits("max_pool2d", g)
    constant = g.R == g.S and g.R in _WINDOWS and g.stride == (2, 2) and g.dilation == (1, 1)
    return g.R if constant else 0


# ---- forward


def _forward_plain(x: Any, y: Any, codes: Any, g: Geometry) -> None:
    _FORWARD_PLAIN[x.dtype, g.code_dtype](ceil_div(y.size, _THREADS), _THREADS, x, y, codes, g)


@lru_cache(maxsize=1024)
def _forward_tile(g: Geometry) -> Tile | None:
    (sh, sw), (dh, dw) = g.stride, g.dilation
    staged = (lambda p: (p - 1) * sh + (g.R - 1) * dh + 1, lambda q: (q - 1) * sw + (g.S - 1) * dw + 1)
    return staged_tile(g.N * g.C, (g.P, g.Q), staged, _STAGED_ELEMENTS)


def _forward_smem_tile(x: Any, y: Any, codes: Any, g: Geometry) -> None:
    tile = _forward_tile(g)
    if tile is None:  # not even one window fits
        return _forward_plain(x, y, codes, g)
    blocks = tile.blocks(g.N * g.C, g.P, g.Q)
    _FORWARD_SMEM_TILE[x.dtype, g.code_dtype](blocks, _THREADS, x, y, codes, g, tile)


def _forward_register_tile(x: Any, y: Any, codes: Any, g: Geometry) -> None:
    blocks = ceil_div(g.N * g.C * g.P * ceil_div(g.Q, _OWN), _THREADS)
    _FORWARD_REGISTER_TILE[x.dtype, g.code_dtype, _window(g)](blocks, _THREADS, x, y, codes, g)


@lru_cache(maxsize=1024)
def _forward_default(g: Geometry) -> Version:
    """Strips where their loops are unrolled and not mostly empty; else tiles, if they employ their block."""
    if _window(g) and g.Q >= _OWN:
        return _forward_register_tile
    return _forward_smem_tile if _is_worth_staging(_forward_tile(g)) else _forward_plain


def _is_worth_staging(tile: Tile | None) -> bool:
    return tile is not None and tile.planes * tile.height * tile.width >= _LEAST_TILE


def _forward(version: Version) -> Callable[[Any, Geometry, Any], tuple[Any, Any]]:
    def forward(x: Any, g: Geometry, out: Any) -> tuple[Any, Any]:
        _window(g)
        y, codes = result(out, x, g.y_shape), empty(x, g.y_shape, g.code_dtype)
        version(x, y, codes, g)
        return y, codes

    return forward


def max_pool2d_forward(x: Any, g: Geometry, out: Any) -> tuple[Any, Any]:
    """As the reference's; see the package's docstring."""
    return _forward(_forward_default(g))(x, g, out)


# ---- backward


def _backward_plain(grad: Any, codes: Any, dx: Any, g: Geometry) -> None:
    _BACKWARD_PLAIN[grad.dtype, g.code_dtype](ceil_div(dx.size, _THREADS), _THREADS, grad, codes, dx, g)


@lru_cache(maxsize=1024)
def _backward_tile(g: Geometry) -> Tile | None:
    (sh, sw), (dh, dw) = g.stride, g.dilation
    staged = (
        lambda h: min((h - 1 + (g.R - 1) * dh) // sh + 1, g.P),
        lambda w: min((w - 1 + (g.S - 1) * dw) // sw + 1, g.Q),
    )
    return staged_tile(g.N * g.C, (g.H, g.W), staged, _STAGED_WINDOWS)


def _backward_smem_tile(grad: Any, codes: Any, dx: Any, g: Geometry) -> None:
    tile = _backward_tile(g)
    if tile is None:  # more windows share an element than fit
        return _backward_plain(grad, codes, dx, g)
    blocks = tile.blocks(g.N * g.C, g.H, g.W)
    _BACKWARD_SMEM_TILE[grad.dtype, g.code_dtype](blocks, _THREADS, grad, codes, dx, g, tile)


def _backward_register_tile(grad: Any, codes: Any, dx: Any, g: Geometry) -> None:
    window = _window(g)
    if window == 2:  # a thread owns what lies under a strip of windows
        strips = ceil_div(g.H + g.padding[0], 2) * ceil_div(g.W + g.padding[1], 2 * _OWN)
    else:
        strips = g.H * ceil_div(g.W, _OWN)
    blocks = ceil_div(g.N * g.C * strips, _THREADS)
    _BACKWARD_REGISTER_TILE[grad.dtype, g.code_dtype, window](blocks, _THREADS, grad, codes, dx, g)


@lru_cache(maxsize=1024)
def _backward_default(g: Geometry) -> Version:
    """As :func:`_forward_default`."""
    if _window(g) and g.W >= _OWN:
        return _backward_register_tile
    return _backward_smem_tile if _is_worth_staging(_backward_tile(g)) else _backward_plain


def _backward(version: Version) -> Callable[[Any, Any, Geometry, Any], Any]:
    def backward(grad: Any, codes: Any, g: Geometry, out: Any) -> Any:
        _window(g)
        dx = result(out, grad, g.x_shape)
        version(grad, codes, dx, g)
        return dx

    return backward


def max_pool2d_backward(grad: Any, codes: Any, g: Geometry, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    return _backward(_backward_default(g))(grad, codes, g, out)


def max_pool2d_gather(x: Any, codes: Any, g: Geometry, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    _window(g)
    y = result(out, x, g.y_shape)
    _GATHER[x.dtype, g.code_dtype](ceil_div(y.size, _THREADS), _THREADS, x, codes, y, g)
    return y


VERSIONS = {
    "max_pool2d_forward": {
        "v1_plain": _forward(_forward_plain),
        "v2_smem_tile": _forward(_forward_smem_tile),
        "v3_register_tile": _forward(_forward_register_tile),
    },
    "max_pool2d_backward": {
        "v1_plain": _backward(_backward_plain),
        "v2_smem_tile": _backward(_backward_smem_tile),
        "v3_register_tile": _backward(_backward_register_tile),
    },
}
