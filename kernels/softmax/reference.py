"""Softmax in NumPy."""

from __future__ import annotations

import numpy as np


def _shifted(x: np.ndarray, axis: int) -> np.ndarray:
    """x less its maximum along ``axis``; an axis of length 0 has none (``initial``) and needs none."""
    return x - x.max(axis=axis, keepdims=True, initial=-np.inf)


def softmax_forward(x: np.ndarray, axis: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        y = _shifted(x, axis)
        np.exp(y, out=y)
        y /= y.sum(axis=axis, keepdims=True)
    return y


def softmax_backward(grad: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        dx = grad - (grad * y).sum(axis=axis, keepdims=True)
        dx *= y
    return dx


def log_softmax_forward(x: np.ndarray, axis: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        y = _shifted(x, axis)
        y -= np.log(np.exp(y).sum(axis=axis, keepdims=True))
    return y


def log_softmax_backward(grad: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        dx = np.exp(y)
        dx *= -grad.sum(axis=axis, keepdims=True)
        dx += grad
    return dx
