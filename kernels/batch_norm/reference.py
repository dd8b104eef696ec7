"""Batch normalisation in NumPy."""

from __future__ import annotations

import numpy as np


def _axes(x: np.ndarray) -> tuple[int, ...]:
    """All axes but that of the channels."""
    return (0, *range(2, x.ndim))


def _wide(per_channel: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(C,) -> (C, 1, ...), to be broadcast against x."""
    return per_channel.reshape(-1, *[1] * (x.ndim - 2))


def _affine(y: np.ndarray, scale: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None) -> None:
    """y <- y scale weight + bias, each per channel."""
    y *= _wide(scale if weight is None else scale * weight, y)
    if bias is not None:
        y += _wide(bias, y)


def batch_norm_forward(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.errstate(all="ignore"):
        mean = x.mean(axis=_axes(x))  # (C,)
        y = x - _wide(mean, x)
        rstd = 1 / np.sqrt(np.square(y).mean(axis=_axes(x)) + eps)  # (C,)
        _affine(y, rstd, weight, bias)
    return y, mean, rstd


def batch_norm_inference(
    x: np.ndarray, mean: np.ndarray, var: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> np.ndarray:
    with np.errstate(all="ignore"):
        y = x - _wide(mean, x)
        _affine(y, 1 / np.sqrt(var + eps), weight, bias)
    return y


def batch_norm_backward(
    grad: np.ndarray, x: np.ndarray, weight: np.ndarray | None, mean: np.ndarray, rstd: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    per_value = 1 / max(x.size // max(len(mean), 1), 1)  # 1/M
    with np.errstate(all="ignore"):
        dx = x - _wide(mean, x)
        dx *= _wide(rstd, x)  # xhat
        dbias = grad.sum(axis=_axes(x))
        dweight = (grad * dx).sum(axis=_axes(x))
        dx *= _wide(dweight * -per_value, x)
        dx -= _wide(dbias * per_value, x)
        dx += grad
        dx *= _wide(rstd if weight is None else rstd * weight, x)
    return dx, dweight, dbias
