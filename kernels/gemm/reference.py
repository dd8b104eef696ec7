"""The matrix product in NumPy."""

from __future__ import annotations

import numpy as np

from .._contracts import deliver


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
        from ..activation import activation_forward

        y = activation_forward(y, activation)
    return deliver(y, out)
