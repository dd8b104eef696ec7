"""Launcher of avg_pool2d.cu: grids, and which version for which shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from .._launch import FLOATS, Kernel, ceil_div, result
from .._windows import Tile, check_32_bits, staged_tile
from . import Geometry

#: 2 and 3: windows of that size with stride 2; 0: any.
_WINDOWS = (0, 2, 3)

_FORWARD_PLAIN = Kernel(__file__, "avg_pool2d_forward_v1_plain", T=FLOATS)
_FORWARD_SMEM_TILE = Kernel(__file__, "avg_pool2d_forward_v2_smem_tile", T=FLOATS)
_FORWARD_REGISTER_TILE = Kernel(__file__, "avg_pool2d_forward_v3_register_tile", T=FLOATS, WINDOW=_WINDOWS)
_BACKWARD_PLAIN = Kernel(__file__, "avg_pool2d_backward_v1_plain", T=FLOATS)
_BACKWARD_SMEM_TILE = Kernel(__file__, "avg_pool2d_backward_v2_smem_tile", T=FLOATS)
_BACKWARD_REGISTER_TILE = Kernel(__file__, "avg_pool2d_backward_v3_register_tile", T=FLOATS, WINDOW=_WINDOWS)

# As in avg_pool2d.cu.
_THREADS = 256
_STAGED_ELEMENTS, _STAGED_WINDOWS = 4096, 2048
_OWN = 4
#: Where tiles have fewer elements, most threads of a v2_smem_tile block would only stage.
_LEAST_TILE = 64

#: Takes the input, the result and the sizes.
Version = Callable[[Any, Any, Geometry], None]


@lru_cache(maxsize=1024)
def _window(g: Geometry) -> int:
    """The template parameter WINDOW, once the sizes are known to be fit for 32 bits."""
    check_32_bits("avg_pool2d", g)
    return g.R if g.R == g.S and g.R in _WINDOWS and g.stride == (2, 2) else 0


def _options(g: Geometry) -> tuple[Any, float]:
    """The kernels' Geometry, and their divisor, where 0 stands for none."""
    return g[:-1], float(g.divisor_override or 0)


def _is_worth_staging(tile: Tile | None) -> bool:
    return tile is not None and tile.planes * tile.height * tile.width >= _LEAST_TILE


# ---- forward


def _forward_plain(x: Any, y: Any, g: Geometry) -> None:
    _FORWARD_PLAIN[x.dtype](ceil_div(y.size, _THREADS), _THREADS, x, y, *_options(g))


@lru_cache(maxsize=1024)
def _forward_tile(g: Geometry) -> Tile | None:
    sh, sw = g.stride
    staged = (lambda p: (p - 1) * sh + g.R, lambda q: (q - 1) * sw + g.S)
    return staged_tile(g.N * g.C, (g.P, g.Q), staged, _STAGED_ELEMENTS)


def _forward_smem_tile(x: Any, y: Any, g: Geometry) -> None:
    tile = _forward_tile(g)
    if tile is None:  # not even one window fits
        return _forward_plain(x, y, g)
    _FORWARD_SMEM_TILE[x.dtype](tile.blocks(g.N * g.C, g.P, g.Q), _THREADS, x, y, *_options(g), tile)


def _forward_register_tile(x: Any, y: Any, g: Geometry) -> None:
    blocks = ceil_div(g.N * g.C * g.P * ceil_div(g.Q, _OWN), _THREADS)
    _FORWARD_REGISTER_TILE[x.dtype, _window(g)](blocks, _THREADS, x, y, *_options(g))


@lru_cache(maxsize=1024)
def _forward_default(g: Geometry) -> Version:
    """Strips where their loops are unrolled and not mostly empty; else tiles, if they employ their block."""
    if _window(g) and g.Q >= _OWN:
        return _forward_register_tile
    return _forward_smem_tile if _is_worth_staging(_forward_tile(g)) else _forward_plain


def _forward(version: Version) -> Callable[[Any, Geometry, Any], Any]:
    def forward(x: Any, g: Geometry, out: Any) -> Any:
        _window(g)
        y = result(out, x, g.y_shape)
        version(x, y, g)
        return y

    return forward


def avg_pool2d_forward(x: Any, g: Geometry, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    return _forward(_forward_default(g))(x, g, out)


# ---- backward


def _backward_plain(grad: Any, dx: Any, g: Geometry) -> None:
    _BACKWARD_PLAIN[grad.dtype](ceil_div(dx.size, _THREADS), _THREADS, grad, dx, *_options(g))


@lru_cache(maxsize=1024)
def _backward_tile(g: Geometry) -> Tile | None:
    sh, sw = g.stride
    staged = (lambda h: min((h - 1 + g.R - 1) // sh + 1, g.P), lambda w: min((w - 1 + g.S - 1) // sw + 1, g.Q))
    return staged_tile(g.N * g.C, (g.H, g.W), staged, _STAGED_WINDOWS)


def _backward_smem_tile(grad: Any, dx: Any, g: Geometry) -> None:
    tile = _backward_tile(g)
    if tile is None:  # more windows share an element than fit
        return _backward_plain(grad, dx, g)
    _BACKWARD_SMEM_TILE[grad.dtype](tile.blocks(g.N * g.C, g.H, g.W), _THREADS, grad, dx, *_options(g), tile)


def _backward_register_tile(grad: Any, dx: Any, g: Geometry) -> None:
    window = _window(g)
    if window == 2:  # a thread owns what lies under a strip of windows
        strips = ceil_div(g.H + g.padding[0], 2) * ceil_div(g.W + g.padding[1], 2 * _OWN)
    else:
        strips = g.H * ceil_div(g.W, _OWN)
    _BACKWARD_REGISTER_TILE[grad.dtype, window](
        ceil_div(g.N * g.C * strips, _THREADS), _THREADS, grad, dx, *_options(g)
    )


@lru_cache(maxsize=1024)
def _backward_default(g: Geometry) -> Version:
    """As :func:`_forward_default`."""
    if _window(g) and g.W >= _OWN:
        return _backward_register_tile
    return _backward_smem_tile if _is_worth_staging(_backward_tile(g)) else _backward_plain


def _backward(version: Version) -> Callable[[Any, Geometry, Any], Any]:
    def backward(grad: Any, g: Geometry, out: Any) -> Any:
        _window(g)
        dx = result(out, grad, g.x_shape)
        version(grad, dx, g)
        return dx

    return backward


def avg_pool2d_backward(grad: Any, g: Geometry, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    return _backward(_backward_default(g))(grad, g, out)


VERSIONS = {
    "avg_pool2d_forward": {
        "v1_plain": _forward(_forward_plain),
        "v2_smem_tile": _forward(_forward_smem_tile),
        "v3_register_tile": _forward(_forward_register_tile),
    },
    "avg_pool2d_backward": {
        "v1_plain": _backward(_backward_plain),
        "v2_smem_tile": _backward(_backward_smem_tile),
        "v3_register_tile": _backward(_backward_register_tile),
    },
}
