"""Group normalisation in NumPy, on the array (N, G, C/G, positions)."""

from __future__ import annotations

import math

import numpy as np


def _grouped(x: np.ndarray, groups: int) -> np.ndarray:
    N, C, *positions = x.shape
    return x.reshape(N, groups, C // groups, math.prod(positions))


def _wide(per_channel: np.ndarray, groups: int) -> np.ndarray:
    return per_channel.reshape(groups, -1, 1)  # (G, C/G, 1)


def group_norm_forward(
    x: np.ndarray, groups: int, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    N = x.shape[0]
    with np.errstate(all="ignore"):
        grouped = _grouped(x, groups)
        mean = grouped.mean(axis=(2, 3), keepdims=True)  # (N, G, 1, 1)
        y = grouped - mean
        rstd = 1 / np.sqrt(np.square(y).mean(axis=(2, 3), keepdims=True) + eps)  # (N, G, 1, 1)
        y *= rstd
        if weight is not None:
            y *= _wide(weight, groups)
        if bias is not None:
            y += _wide(bias, groups)
    return y.reshape(x.shape), mean.reshape(N, groups), rstd.reshape(N, groups)


def group_norm_backward(
    grad: np.ndarray, x: np.ndarray, groups: int, weight: np.ndarray | None, mean: np.ndarray, rstd: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.errstate(all="ignore"):
        rstd = rstd[:, :, None, None]
        g = _grouped(grad, groups)
        xhat = _grouped(x, groups) - mean[:, :, None, None]
        xhat *= rstd
        of_g, of_product = g.sum(axis=3), (g * xhat).sum(axis=3)  # (N, G, C/G): of each channel of each example
        dbias, dweight = of_g.sum(axis=0), of_product.sum(axis=0)
        h = g
        if weight is not None:
            wide = _wide(weight, groups)
            h, of_g, of_product = g * wide, of_g * wide[..., 0], of_product * wide[..., 0]
        D = g.shape[2] * g.shape[3]
        mean_of_h, mean_of_product = (sums.sum(axis=2)[..., None, None] / D for sums in (of_g, of_product))
        dx = xhat  # its place is free from here on
        dx *= -mean_of_product
        dx += h
        dx -= mean_of_h
        dx *= rstd
    return dx.reshape(x.shape), dweight.reshape(-1), dbias.reshape(-1)
