"""Layer normalisation in NumPy, on the matrix (rows, D)."""

from __future__ import annotations

import math

import numpy as np


def _matrix(x: np.ndarray, normalized_ndim: int) -> np.ndarray:
    D = math.prod(x.shape[x.ndim - normalized_ndim :])
    return x.reshape(x.size // D, D)


def layer_norm_forward(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, normalized_ndim: int, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = x.shape[: x.ndim - normalized_ndim]
    with np.errstate(all="ignore"):
        matrix = _matrix(x, normalized_ndim)
        mean = matrix.mean(axis=1, keepdims=True)  # (rows, 1)
        y = matrix - mean  # (rows, D)
        rstd = 1 / np.sqrt(np.square(y).mean(axis=1, keepdims=True) + eps)  # (rows, 1)
        y *= rstd
        if weight is not None:
            y *= weight.reshape(-1)
        if bias is not None:
            y += bias.reshape(-1)
    return y.reshape(x.shape), mean.reshape(rows), rstd.reshape(rows)


def layer_norm_backward(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    normalized_ndim: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row = x.shape[x.ndim - normalized_ndim :]
    with np.errstate(all="ignore"):
        rstd = rstd.reshape(-1, 1)
        g = _matrix(grad, normalized_ndim)
        xhat = _matrix(x, normalized_ndim) - mean.reshape(-1, 1)
        xhat *= rstd
        dweight = (g * xhat).sum(axis=0)
        dbias = g.sum(axis=0)
        h = g if weight is None else g * weight.reshape(-1)
        of_h, of_product = h.mean(axis=1, keepdims=True), (h * xhat).mean(axis=1, keepdims=True)
        dx = xhat  # its place is free from here on
        dx *= -of_product
        dx += h
        dx -= of_h
        dx *= rstd
    return dx.reshape(x.shape), dweight.reshape(row), dbias.reshape(row)
