"""Launcher of softmax.cu."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .._launch import BOOLS, FLOATS, Kernel, ceil_div, empty, runtime_of


class _Pass:
    """The kernels of one pass, by version."""

    def __init__(self, name: str) -> None:
        self.plain = Kernel(__file__, f"softmax_{name}_v1_plain", T=FLOATS)
        self.team = Kernel(__file__, f"softmax_{name}_v2_team", T=FLOATS, TEAM=(4, 32, 256), VECTOR=BOOLS)
        self.columns = Kernel(__file__, f"softmax_{name}_v2_team_columns", T=FLOATS)


_FORWARD = _Pass("forward")
_BACKWARD = _Pass("backward")


def _v1_plain(kernels: _Pass, arrays: tuple[Any, ...], rows: int, length: int, inner: int, logarithm: bool) -> None:
    kernels.plain[arrays[0].dtype](ceil_div(rows, 128), 128, *arrays, rows, length, inner, logarithm)


def _v2_team(kernels: _Pass, arrays: tuple[Any, ...], rows: int, length: int, inner: int, logarithm: bool) -> None:
    dtype = arrays[0].dtype
    if inner > 1:
        kernels.columns[dtype](ceil_div(rows, 32), (32, 8), *arrays, rows, length, inner, logarithm)
        return
    # The smallest team whose tile holds a row; the largest one reads longer rows tile by tile.
    size = length * dtype.itemsize
    team = 4 if length <= 16 else 32 if size <= 32 * 64 else 256
    threads = max(team, 128)
    runtime = runtime_of(arrays[0])
    vector = size % 16 == 0 and all(runtime.address(a) % 16 == 0 for a in arrays)
    kernels.team[dtype, team, vector](ceil_div(rows, threads // team), threads, *arrays, rows, length, logarithm)


_Version = Callable[[_Pass, tuple[Any, ...], int, int, int, bool], None]


def _run(version: _Version, kernels: _Pass, logarithm: bool, *arguments: Any) -> Any:
    *inputs, axis = arguments
    shape = inputs[0].shape
    inner = math.prod(shape[axis + 1 :])
    result = empty(inputs[0], shape)
    if result.size:
        version(kernels, (*inputs, result), math.prod(shape[:axis]) * inner, shape[axis], inner, logarithm)
    return result


def _function(version: _Version, kernels: _Pass, logarithm: bool) -> Callable[..., Any]:
    return lambda *arguments: _run(version, kernels, logarithm, *arguments)


def softmax_forward(x: Any, axis: int) -> Any:
    """As the reference's; see the package's docstring."""
    return _run(_v2_team, _FORWARD, False, x, axis)


def softmax_backward(grad: Any, y: Any, axis: int) -> Any:
    """As the reference's."""
    return _run(_v2_team, _BACKWARD, False, grad, y, axis)


def log_softmax_forward(x: Any, axis: int) -> Any:
    """As the reference's."""
    return _run(_v2_team, _FORWARD, True, x, axis)


def log_softmax_backward(grad: Any, y: Any, axis: int) -> Any:
    """As the reference's."""
    return _run(_v2_team, _BACKWARD, True, grad, y, axis)


VERSIONS = {
    function: {"v1_plain": _function(_v1_plain, *options), "v2_team": _function(_v2_team, *options)}
    for function, options in {
        "softmax_forward": (_FORWARD, False),
        "softmax_backward": (_BACKWARD, False),
        "log_softmax_forward": (_FORWARD, True),
        "log_softmax_backward": (_BACKWARD, True),
    }.items()
}
