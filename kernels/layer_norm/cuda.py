"""Launcher of layer_norm.cu: how many threads own a row, and over how many slices dw and db are added up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .._launch import BOOLS, FLOATS, Kernel, ceil_div, empty, runtime_of

_ROWS: dict[str, Any] = {"T": FLOATS, "ROW_THREADS": (32, 256)}
_FORWARD_PLAIN = Kernel(__file__, "layer_norm_forward_v1_plain", **_ROWS)
_BACKWARD_PLAIN = Kernel(__file__, "layer_norm_backward_v1_plain", **_ROWS)
_COLUMNS = Kernel(__file__, "layer_norm_columns_v1_plain", T=FLOATS)
_PARAMETERS = Kernel(__file__, "layer_norm_parameters", T=FLOATS)

_REGISTERS: dict[str, Any] = {"T": FLOATS, "ROW_THREADS": (32, 256, 512)}
_FORWARD = Kernel(__file__, "layer_norm_forward_v2_registers", **_REGISTERS, OWN=(1, 4, 8), VECTOR=BOOLS)
_BACKWARD = Kernel(__file__, "layer_norm_backward_v2_registers", **_REGISTERS, OWN=(1, 4), VECTOR=BOOLS)
_BACKWARD_AHEAD = Kernel(__file__, "layer_norm_backward_v3_ahead", T=FLOATS, ROW_THREADS=(256, 512), VECTOR=BOOLS)

#: (threads of a row, vectors of each), from the shortest rows to the longest.
_HOLDERS = ((32, 1), (32, 4), (256, 1), (512, 1), (256, 4), (512, 4))
#: Forward, where there are so many rows that 8 in each block leave no multiprocessor idle, a warp holds twice as much:
#: more bytes under way and no barrier.  And a block of 512 can hold twice as long a row, since it needs no sums of dw.
_MANY_ROWS, _BY_WARPS, _LONGEST = 1024, (32, 8), (512, 8)
#: dw and db are gathered in at most so many slices of rows, of at least so many rows: a slice writes and reads
#: again as many numbers as a row has, for dw and for db.
_MAX_SLICES = 512
_MIN_ROWS = 4


def _sizes(x: Any, normalized_ndim: int) -> tuple[int, int]:
    D = math.prod(x.shape[x.ndim - normalized_ndim :])
    return x.size // D, D


def _holder(x: Any, D: int, among: tuple[tuple[int, int], ...] = _HOLDERS) -> tuple[int, int] | None:
    """The smallest (threads, vectors of each) that hold a row, or None."""
    lanes = 16 // x.itemsize
    return next((holder for holder in among if D <= math.prod(holder) * lanes), None)


def _forward_holder(x: Any, R: int, D: int) -> tuple[int, int] | None:
    """As :func:`_holder`, for the forward pass; by bytes under way, not by measurement."""
    warps = (_BY_WARPS,) if R >= _MANY_ROWS else ()
    return _holder(x, D, (*_HOLDERS[:2], *warps, *_HOLDERS[2:], _LONGEST))


def _vector(D: int, *arrays: Any) -> bool:
    """Whether all rows can be moved by 16 bytes at a time."""
    runtime, lanes = runtime_of(arrays[0]), 16 // arrays[0].itemsize
    return D % lanes == 0 and all(a is None or runtime.address(a) % 16 == 0 for a in arrays)


def _plain_rows(R: int, D: int) -> tuple[int, int]:
    """The threads of a row, and the blocks of 256."""
    return (32, ceil_div(R, 8)) if D < 1024 else (256, R)


def _forward_plain(x: Any, y: Any, weight: Any, bias: Any, mean: Any, rstd: Any, R: int, D: int, eps: float) -> None:
    threads, blocks = _plain_rows(R, D)
    _FORWARD_PLAIN[x.dtype, threads](blocks, 256, x, weight, bias, y, mean, rstd, R, D, eps)


def _forward_registers(
    x: Any, y: Any, weight: Any, bias: Any, mean: Any, rstd: Any, R: int, D: int, eps: float
) -> None:
    holder = _forward_holder(x, R, D)
    if holder is None:  # a row longer than any block's registers is read again
        return _forward_plain(x, y, weight, bias, mean, rstd, R, D, eps)
    threads = max(holder[0], 256)
    kernel = _FORWARD[x.dtype, *holder, _vector(D, x, y, weight, bias)]
    kernel(ceil_div(R, threads // holder[0]), threads, x, weight, bias, y, mean, rstd, R, D, eps)


def _backward_plain(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, dx: Any, R: int, D: int) -> Any:
    threads, blocks = _plain_rows(R, D)
    _BACKWARD_PLAIN[x.dtype, threads](blocks, 256, grad, x, weight, mean, rstd, dx, R, D)
    rows_each = max(64, ceil_div(R, _MAX_SLICES))
    slices = ceil_div(R, rows_each)
    partial = empty(x, (2, slices, D))
    _COLUMNS[x.dtype]((ceil_div(D, 32), slices), (32, 32), grad, x, mean, rstd, partial, R, D, rows_each)
    return partial


def _backward_registers(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, dx: Any, R: int, D: int) -> Any:
    return _backward_held(_BACKWARD, grad, x, weight, mean, rstd, dx, R, D)


def _backward_ahead(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, dx: Any, R: int, D: int) -> Any:
    """v3 for the rows of a block whose threads hold a vector each, v2 for others.  By bytes under way, not measured."""
    ahead = _holder(x, D) in ((256, 1), (512, 1))
    return _backward_held(_BACKWARD_AHEAD if ahead else _BACKWARD, grad, x, weight, mean, rstd, dx, R, D)


def _backward_held(
    kernel: Kernel, grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, dx: Any, R: int, D: int
) -> Any:
    holder = _holder(x, D)
    if holder is None:  # a row longer than any block's registers is read again
        return _backward_plain(grad, x, weight, mean, rstd, dx, R, D)
    threads = max(holder[0], 256)
    rows = threads // holder[0]
    rows_each = max(ceil_div(_MIN_ROWS, rows), ceil_div(R, rows * _MAX_SLICES))
    slices = ceil_div(R, rows * rows_each)
    partial = empty(x, (2, slices, D))
    templates = holder if kernel is _BACKWARD else holder[:1]
    instance = kernel[x.dtype, *templates, _vector(D, grad, x, weight, dx, partial)]
    instance(slices, threads, grad, x, weight, mean, rstd, dx, partial, R, D, rows_each)
    return partial


def _forward(
    version: Callable[..., None], x: Any, weight: Any, bias: Any, normalized_ndim: int, eps: float
) -> tuple[Any, Any, Any]:
    R, D = _sizes(x, normalized_ndim)
    rows = x.shape[: x.ndim - normalized_ndim]
    y, mean, rstd = empty(x, x.shape), empty(x, rows), empty(x, rows)
    version(x, y, weight, bias, mean, rstd, R, D, eps)
    return y, mean, rstd


def _backward(
    version: Callable[..., Any], grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, normalized_ndim: int
) -> tuple[Any, Any, Any]:
    R, D = _sizes(x, normalized_ndim)
    row = x.shape[x.ndim - normalized_ndim :]
    dx, dweight, dbias = empty(x, x.shape), empty(x, row), empty(x, row)
    partial = version(grad, x, weight, mean, rstd, dx, R, D)  # (2, slices, D)
    _PARAMETERS[x.dtype]((ceil_div(D, 32), 2), (32, 32), partial, dweight, dbias, partial.shape[1], D)
    return dx, dweight, dbias


def layer_norm_forward(x: Any, weight: Any, bias: Any, normalized_ndim: int, eps: float) -> tuple[Any, Any, Any]:
    """As the reference's; see the package's docstring."""
    return _forward(_forward_registers, x, weight, bias, normalized_ndim, eps)


def layer_norm_backward(
    grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, normalized_ndim: int
) -> tuple[Any, Any, Any]:
    """As the reference's."""
    return _backward(_backward_ahead, grad, x, weight, mean, rstd, normalized_ndim)


VERSIONS = {
    "layer_norm_forward": {
        "v1_plain": lambda *arguments: _forward(_forward_plain, *arguments),
        "v2_registers": layer_norm_forward,
    },
    "layer_norm_backward": {
        "v1_plain": lambda *arguments: _backward(_backward_plain, *arguments),
        "v2_registers": lambda *arguments: _backward(_backward_registers, *arguments),
        "v3_ahead": layer_norm_backward,
    },
}
