"""Compiled activations: one pass over the numbers, a vector at a time.

The array is cut into parts of :data:`_PART` elements, whatever the number of threads; a small one is not worth waking
them.  Forward kernels read x and write y, backward kernels read dL/dy and what was saved and write dL/dx,
each once.  exp, tanh and the like are computed in vector registers (``kernels/_simd_math.py``), so that large arrays
of most kinds wait for memory.

A kernel is compiled for a group of kinds, when one of them is first used.  Kinds of a few instructions share a
kernel, which looks at its argument ``which`` once per part; one with an exponential has its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np

from .._jit import in_parts
from .._simd import Pointer, Stage, Value, simd
from .._simd_math import exp_of_negative, expm1_of_negative, half_of_1_plus_exp, log1p, normal, tanh

_PART = 16384
_AHEAD = 1024  # bytes before a vector is needed: a processor that is busy with dozens of instructions looks less far
_CUBIC = 0.044715
_ROOT = math.sqrt(2 / math.pi)

# ---- the formulas of the package's docstring, for a vector; p and q are the options.  What a comparison with NaN,
# which is false, selects, lets NaN through.

Formula = Callable[..., Value]


def _relu(s: Stage, x: Value, p: Value, q: Value) -> Value:
    return (x <= 0.0).where(0.0, x)


def _leaky_relu(s: Stage, x: Value, p: Value, q: Value) -> Value:
    return (x > 0.0).where(x, x * p + 0.0)  # + 0: of the two zeros the reference gives this one


def _elu(s: Stage, x: Value, p: Value, q: Value) -> Value:
    return (x > 0.0).where(x, expm1_of_negative(s, (x > 0.0).where(0.0, x)) * p + 0.0)


def _sigmoid(s: Stage, x: Value, p: Value, q: Value) -> Value:
    return 0.5 / half_of_1_plus_exp(s, -x)


def _tanh(s: Stage, x: Value, p: Value, q: Value) -> Value:
    return tanh(s, x)


def _silu(s: Stage, x: Value, p: Value, q: Value) -> Value:
    return x * 0.5 / half_of_1_plus_exp(s, -x)


def _gelu(s: Stage, x: Value, p: Value, q: Value) -> Value:
    return x * normal(s, x)[0]


def _twice_u(x: Value) -> Value:
    return (x * x * _CUBIC + 1.0) * x * (2 * _ROOT)


def _gelu_tanh(s: Stage, x: Value, p: Value, q: Value) -> Value:
    return x * 0.5 / half_of_1_plus_exp(s, -_twice_u(x))


def _softplus(s: Stage, x: Value, p: Value, q: Value) -> Value:
    z = x * p  # log(1 + e^z) = log(1 + e^-|z|) + max(z, 0) does not overflow
    return (z > q).where(x, (log1p(s, exp_of_negative(s, -s.abs(z))) + _relu(s, z, p, q)) * (1.0 / p))


def _relu_backward(s: Stage, grad: Value, y: Value, p: Value, q: Value) -> Value:
    return (y <= 0.0).where(0.0, grad)


def _leaky_relu_backward(s: Stage, grad: Value, y: Value, p: Value, q: Value) -> Value:
    return (y > 0.0).where(grad, grad * p)


def _elu_backward(s: Stage, grad: Value, y: Value, p: Value, q: Value) -> Value:
    return (y > 0.0).where(grad, grad * (y + p))


def _sigmoid_backward(s: Stage, grad: Value, y: Value, p: Value, q: Value) -> Value:
    return (1.0 - y) * y * grad


def _tanh_backward(s: Stage, grad: Value, y: Value, p: Value, q: Value) -> Value:
    return (1.0 - y * y) * grad


def _silu_backward(s: Stage, grad: Value, x: Value, p: Value, q: Value) -> Value:
    gate = _sigmoid(s, x, p, q)
    return ((1.0 - gate) * x + 1.0) * gate * grad


def _within_40(x: Value) -> Value:
    """Beyond, the gates are 0 or 1 in float64 too; so no 0 meets an infinity."""
    x = (x > 40.0).where(40.0, x)
    return (x < -40.0).where(-40.0, x)


def _gelu_backward(s: Stage, grad: Value, x: Value, p: Value, q: Value) -> Value:
    x = _within_40(x)
    gate, bell = normal(s, x)
    return (bell * (1 / math.sqrt(2 * math.pi)) * x + gate) * grad


def _gelu_tanh_backward(s: Stage, grad: Value, x: Value, p: Value, q: Value) -> Value:
    x = _within_40(x)
    u = _twice_u(x)
    small = exp_of_negative(s, -s.abs(u))
    large = 1.0 / (small + 1.0)  # s(2|u|), and its complement keeps its digits
    rest = small * large
    slope = (x * x * (3 * _CUBIC) + 1.0) * (2 * _ROOT)
    return (slope * large * rest * x + (u < 0.0).where(rest, large)) * grad


def _softplus_backward(s: Stage, grad: Value, x: Value, p: Value, q: Value) -> Value:
    z = x * p
    return (z > q).where(grad, _sigmoid(s, z, p, q) * grad)


#: The formulas, by direction and kind; gelu's approximation is a kind of its own.
FORWARD: dict[str, Formula] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "softplus": _softplus,
}
BACKWARD: dict[str, Formula] = {
    "relu": _relu_backward,
    "leaky_relu": _leaky_relu_backward,
    "elu": _elu_backward,
    "sigmoid": _sigmoid_backward,
    "tanh": _tanh_backward,
    "silu": _silu_backward,
    "gelu": _gelu_backward,
    "gelu_tanh": _gelu_tanh_backward,
    "softplus": _softplus_backward,
}
#: The kinds that share a kernel.
_TOGETHER = {"forward": "relu leaky_relu", "backward": "relu leaky_relu elu sigmoid tanh"}

# ---- the kernels


def _map(
    s: Stage, formula: Formula, inputs: list[Pointer], out: Pointer, options: list[Value], start: Value, stop: Value
) -> None:
    """out[i] = formula of the inputs' elements i, for i in [start, stop)."""
    lanes, ahead = s.lanes(out), _AHEAD // out.itemsize

    def body(i: Value, count: Value | None) -> None:
        here = None if count is None else s.first(count, lanes)
        for array in inputs:
            array.prefetch(i + ahead)
        out.prefetch(i + ahead, to_write=True)
        out.store(i, formula(s, *(array.load(i, lanes, here) for array in inputs), *options), here)

    s.each(start, stop, lanes, body)


@simd
def _forward_part(
    s: Stage, kinds: str, which: Value, x: Pointer, y: Pointer, p: Value, q: Value, start: Value, stop: Value
) -> None:
    options = [s.splat(option.to(x.dtype), s.lanes(x)) for option in (p, q)]
    for number, kind in enumerate(kinds.split()):
        with s.when(which.equals(number)):
            _map(s, FORWARD[kind], [x], y, options, start, stop)


@simd
def _backward_part(
    s: Stage, kinds: str, which: Value, grad: Pointer, saved: Pointer, dx: Pointer, p: Value, q: Value, start: Value,
    stop: Value,
) -> None:  # fmt: skip
    options = [s.splat(option.to(dx.dtype), s.lanes(dx)) for option in (p, q)]
    for number, kind in enumerate(kinds.split()):
        with s.when(which.equals(number)):
            _map(s, BACKWARD[kind], [grad, saved], dx, options, start, stop)


@cache
def _forward(kinds: str) -> Any:
    @in_parts
    def forward(part, slot, each, which, p, q, x, y):
        start = part * each
        _forward_part(kinds, which, x, y, p, q, start, min(start + each, x.size))

    return forward


@cache
def _backward(kinds: str) -> Any:
    @in_parts
    def backward(part, slot, each, which, p, q, grad, saved, dx):
        start = part * each
        _backward_part(kinds, which, grad, saved, dx, p, q, start, min(start + each, dx.size))

    return backward


@lru_cache(1024)
def _plan(
    direction: str, kind: str, options: tuple[Any, ...], size: int
) -> tuple[Any, tuple[int, int, int, float, float]]:
    """The kernel of ``kind``, and its first arguments: how many parts, their length, the number of the kind, and the
    options p and q."""
    if kind == "gelu":
        kind, options = ("gelu_tanh" if options == ("tanh",) else "gelu"), ()
    together = _TOGETHER[direction].split()
    kinds = together if kind in together else [kind]
    kernel = (_forward if direction == "forward" else _backward)(" ".join(kinds))
    alone = 4 * _PART if kind in together else _PART  # what one thread has done before others would have begun
    parts, each = (1, size) if size <= alone else (-(-size // _PART), _PART)
    p, q = (*options, 0.0, 0.0)[:2]
    return kernel, (parts, each, kinds.index(kind), p, q)


def activation_forward(x: np.ndarray, kind: str, options: tuple[Any, ...], out: np.ndarray | None) -> np.ndarray:
    y = np.empty_like(x) if out is None else out
    kernel, numbers = _plan("forward", kind, options, x.size)
    kernel(*numbers, x.reshape(-1), y.reshape(-1))
    return y


def activation_backward(grad: np.ndarray, saved: np.ndarray, kind: str, options: tuple[Any, ...]) -> np.ndarray:
    dx = np.empty_like(saved)
    kernel, numbers = _plan("backward", kind, options, saved.size)
    kernel(*numbers, grad.reshape(-1), saved.reshape(-1), dx.reshape(-1))
    return dx
