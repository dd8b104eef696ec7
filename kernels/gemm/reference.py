"""The matrix product in NumPy."""

from __future__ import annotations

import numpy as np

from .._contracts import deliver
from .._dtypes import halves_in_float32
from ..activation import activation_backward, activation_forward


@halves_in_float32()
@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity travel silently
def gemm(
    a: np.ndarray,
    b: np.ndarray,
    bias: np.ndarray | None,
    transpose_a: bool,
    transpose_b: bool,
    activation: str | None,
    out: np.ndarray | None,
) -> np.ndarray:
    y = np.matmul(a.swapaxes(-1, -2) if transpose_a else a, b.swapaxes(-1, -2) if transpose_b else b)
    if bias is not None:
        y += bias
    if activation is not None:
        y = activation_forward(y, activation)
    return deliver(y, out)


@np.errstate(invalid="ignore", over="ignore")
def linear_backward(
    grad: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    y: np.ndarray | None,
    activation: str | None,
    wanted: tuple[bool, bool, bool],
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    h = grad if activation is None else _slope(grad, y, activation)
    return (
        gemm(h, b, None, False, False, None, None) if wanted[0] else None,
        gemm(h, a, None, True, False, None, None) if wanted[1] else None,
        _sum(h) if wanted[2] else None,
    )


_slope = halves_in_float32()(activation_backward)


@halves_in_float32()
def _sum(h: np.ndarray) -> np.ndarray:
    return h.sum(axis=0)
