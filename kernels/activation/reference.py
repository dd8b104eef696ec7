"""Activations in NumPy.

Each function fills an array that was made before (a ufunc without ``out=`` would turn an array of
no dimensions into a scalar), by in-place steps in the input's dtype and layout.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Beyond ±_FAR, Φ and s(2u) are 0 or 1 and their derivatives 0 in float64 too.
_FAR = 40.0
_CUBIC = 0.044715
_ROOT = math.sqrt(2 / math.pi)


def _sigmoid(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x); e^-x may become inf, which gives 0 as it should."""
    np.negative(x, out=out)
    np.exp(out, out=out)
    out += 1
    return np.reciprocal(out, out=out)


def _relu(x: np.ndarray, out: np.ndarray) -> None:
    np.maximum(x, 0, out=out)


def _leaky_relu(x: np.ndarray, out: np.ndarray, negative_slope: float) -> None:
    np.minimum(x, 0, out=out)
    out *= negative_slope
    out += np.maximum(x, 0)


def _elu(x: np.ndarray, out: np.ndarray, alpha: float) -> None:
    np.minimum(x, 0, out=out)
    np.expm1(out, out=out)
    out *= alpha
    out += np.maximum(x, 0)


def _tanh(x: np.ndarray, out: np.ndarray) -> None:
    np.tanh(x, out=out)


def _silu(x: np.ndarray, out: np.ndarray) -> None:
    _sigmoid(x, out)
    out *= x


def _twice_u(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """2u = 2 √(2/π) (x + 0.044715 x³), of which gelu's approximation takes s."""
    np.multiply(x, x, out=out)
    out *= _CUBIC
    out += 1
    out *= x
    out *= 2 * _ROOT
    return out


def _gelu_gate(x: np.ndarray, out: np.ndarray, approximate: str) -> None:
    """Φ(x), or its approximation s(2u): the factor of x in gelu."""
    if approximate == "none":
        from scipy.special import ndtr

        ndtr(x, out=out)
    else:
        _sigmoid(_twice_u(x, out), out)


def _gelu(x: np.ndarray, out: np.ndarray, approximate: str) -> None:
    _gelu_gate(x, out, approximate)
    out *= x


def _softplus(x: np.ndarray, out: np.ndarray, beta: float, threshold: float) -> None:
    z = np.multiply(x, beta, out=np.empty_like(x))
    np.abs(z, out=out)  # log(1 + e^z) = log(1 + e^-|z|) + max(z, 0) does not overflow
    np.negative(out, out=out)
    np.exp(out, out=out)
    np.log1p(out, out=out)
    out += np.maximum(z, 0)
    out /= beta
    np.copyto(out, x, where=z > threshold)


def _select(grad: np.ndarray, drop: np.ndarray, out: np.ndarray) -> None:
    """``grad``, but 0 where ``drop``.

    The bits of grad are masked: a product would make NaN of an infinite gradient times 0, and
    ``np.where`` takes ten times as long.
    """
    bits = np.dtype(f"i{grad.itemsize}")
    np.subtract(drop, 1, out=out.view(bits), dtype=bits)  # 0 where dropped, else -1: all bits
    out.view(bits)[...] &= grad.view(bits)


def _relu_backward(grad: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    _select(grad, y <= 0, out)


def _leaky_relu_backward(grad: np.ndarray, y: np.ndarray, out: np.ndarray, negative_slope: float) -> None:
    number = grad.dtype.type
    np.multiply(grad, np.where(y > 0, number(1), number(negative_slope)), out=out)


def _elu_backward(grad: np.ndarray, y: np.ndarray, out: np.ndarray, alpha: float) -> None:
    np.add(y, alpha, out=out)
    np.copyto(out, 1, where=y > 0)
    out *= grad


def _sigmoid_backward(grad: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    np.subtract(1, y, out=out)
    out *= y
    out *= grad


def _tanh_backward(grad: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    np.multiply(y, y, out=out)
    np.subtract(1, out, out=out)
    out *= grad


def _silu_backward(grad: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    s = _sigmoid(x, np.empty_like(x))
    np.subtract(1, s, out=out)
    out *= x
    out += 1
    out *= s
    out *= grad


def _gelu_backward(grad: np.ndarray, x: np.ndarray, out: np.ndarray, approximate: str) -> None:
    x = np.clip(x, -_FAR, _FAR, out=np.empty_like(x))  # so that no 0 meets an infinity
    gate = np.empty_like(x)
    _gelu_gate(x, gate, approximate)
    np.multiply(x, x, out=out)
    if approximate == "none":  # φ(x)
        out *= -0.5
        np.exp(out, out=out)
        out *= 1 / math.sqrt(2 * math.pi)
    else:  # s (1 - s) 2u', where 1 - s is s(-2u), which keeps its digits
        out *= 3 * _CUBIC
        out += 1
        out *= 2 * _ROOT
        out *= gate
        minus_2u = _twice_u(-x, np.empty_like(x))
        out *= _sigmoid(minus_2u, minus_2u)
    out *= x
    out += gate
    out *= grad


def _softplus_backward(grad: np.ndarray, x: np.ndarray, out: np.ndarray, beta: float, threshold: float) -> None:
    z = np.multiply(x, beta, out=np.empty_like(x))
    _sigmoid(z, out)
    np.copyto(out, 1, where=z > threshold)
    out *= grad


_FORWARD: dict[str, Any] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "silu": _silu,
    "gelu": _gelu,
    "softplus": _softplus,
}
_BACKWARD: dict[str, Any] = {
    "relu": _relu_backward,
    "leaky_relu": _leaky_relu_backward,
    "elu": _elu_backward,
    "sigmoid": _sigmoid_backward,
    "tanh": _tanh_backward,
    "silu": _silu_backward,
    "gelu": _gelu_backward,
    "softplus": _softplus_backward,
}


def activation_forward(x: np.ndarray, kind: str, options: tuple[Any, ...], out: np.ndarray | None) -> np.ndarray:
    y = np.empty_like(x) if out is None else out
    with np.errstate(all="ignore"):
        _FORWARD[kind](x, y, *options)
    return y


def activation_backward(grad: np.ndarray, saved: np.ndarray, kind: str, options: tuple[Any, ...]) -> np.ndarray:
    dx = np.empty_like(saved)
    with np.errstate(all="ignore"):
        _BACKWARD[kind](grad, saved, dx, *options)
    return dx
