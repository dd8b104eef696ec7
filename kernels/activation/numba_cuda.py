"""The twins of v2_vector of activation.cu, and of activation.cuh, which other kernels end with.

Same blocks, same elements for a thread.  Numba has no load of 16 bytes, so a thread moves its four floats or
two doubles one by one, and asks for no alignment.  Phi is made of erfc, as Numba has no normcdf.
"""

from __future__ import annotations

import functools
from typing import Any

from .._launch import ceil_div, empty, result
from .._numba_cuda import (
    cuda,
    device,
    erfc_of,
    exp_of,
    expm1_of,
    kernel,
    log1p_of,
    size_of,
    tanh_of,
)
from .cuda import KIND_NUMBERS, _numbers

# enum Activation
RELU, LEAKY_RELU, ELU = KIND_NUMBERS["relu"], KIND_NUMBERS["leaky_relu"], KIND_NUMBERS["elu"]
SIGMOID, TANH, SILU = KIND_NUMBERS["sigmoid"], KIND_NUMBERS["tanh"], KIND_NUMBERS["silu"]
GELU, GELU_TANH, SOFTPLUS = KIND_NUMBERS["gelu"], KIND_NUMBERS["gelu_tanh"], KIND_NUMBERS["softplus"]


@functools.cache
def activations(T: Any) -> tuple[Any, Any]:
    """``activate`` and ``activation_gradient`` of activation.cuh for T."""

    @device
    def normal_cdf(x):  # keeps its digits for negative x, where 1 + erf would lose them
        return T(0.5) * T(erfc_of(-x * T(0.7071067811865476)))

    @device
    def sigmoid(x):
        return T(1) / (T(1) + exp_of(-x))  # e^-x may be inf: 0, as it should

    @device
    def twice_u(x):  # 2u of gelu's tanh approximation
        return T(1.5957691216057308) * x * (T(1) + T(0.044715) * x * x)

    @device
    def activate(kind, x, p, q):
        if kind == RELU:
            return T(0) if x < T(0) else x  # NaN stays
        if kind == LEAKY_RELU:
            return p * x if x < T(0) else x
        if kind == ELU:
            return p * expm1_of(x) if x < T(0) else x
        if kind == SIGMOID:
            return sigmoid(x)
        if kind == TANH:
            return tanh_of(x)
        if kind == SILU:
            return x * sigmoid(x)
        if kind == GELU:
            return x * normal_cdf(x)
        if kind == GELU_TANH:
            return x * sigmoid(twice_u(x))
        if kind == SOFTPLUS:
            z = p * x  # log(1 + e^z) = log(1 + e^-|z|) + max(z, 0) does not overflow
            if z > q:
                return x
            return (log1p_of(exp_of(-abs(z))) + (T(0) if z < T(0) else z)) / p
        return x

    @device
    def not_beyond_40(x):
        return T(-40) if x < T(-40) else T(40) if x > T(40) else x  # NaN stays

    @device
    def activation_gradient(kind, grad, saved, p, q):
        if kind == RELU:
            return T(0) if saved <= T(0) else grad
        if kind == LEAKY_RELU:
            return grad if saved > T(0) else p * grad
        if kind == ELU:
            return grad if saved > T(0) else (saved + p) * grad
        if kind == SIGMOID:
            return (T(1) - saved) * saved * grad
        if kind == TANH:
            return (T(1) - saved * saved) * grad
        if kind == SILU:
            s = sigmoid(saved)
            return ((T(1) - s) * saved + T(1)) * s * grad
        if kind == GELU:
            x = not_beyond_40(saved)
            density = exp_of(T(-0.5) * x * x) * T(0.39894228040143268)  # 1 / sqrt(2 pi)
            return (density * x + normal_cdf(x)) * grad
        if kind == GELU_TANH:
            x = not_beyond_40(saved)
            gate, rest = sigmoid(twice_u(x)), sigmoid(twice_u(-x))  # 1 - gate would lose digits
            slope = T(1.5957691216057308) * (T(0.134145) * x * x + T(1))  # 2u'
            return (slope * gate * rest * x + gate) * grad
        if kind == SOFTPLUS:
            z = p * saved
            return grad if z > q else sigmoid(z) * grad
        return grad

    return activate, activation_gradient


# Block: 256 vectors.  Thread: one.
@kernel
def activation_forward_v2_vector(T):
    SIZE = 16 // size_of(T)
    activate, _ = activations(T)

    def body(x, y, n, kind, p, q):
        first = (cuda.blockIdx.x * 256 + cuda.threadIdx.x) * SIZE
        for i in range(first, min(first + SIZE, n)):
            y[i] = activate(kind, x[i], T(p), T(q))

    return body


# Block: 256 vectors.  Thread: one.
@kernel
def activation_backward_v2_vector(T):
    SIZE = 16 // size_of(T)
    _, activation_gradient = activations(T)

    def body(grad, saved, dx, n, kind, p, q):
        first = (cuda.blockIdx.x * 256 + cuda.threadIdx.x) * SIZE
        for i in range(first, min(first + SIZE, n)):
            dx[i] = activation_gradient(kind, grad[i], saved[i], T(p), T(q))

    return body


def activation_forward(x: Any, kind: str, options: tuple[Any, ...], out: Any) -> Any:
    y = result(out, x, x.shape)
    blocks = ceil_div(x.nbytes, 16 * 256)
    activation_forward_v2_vector[x.dtype](blocks, 256, x, y, x.size, *_numbers(kind, options))
    return y


def activation_backward(grad: Any, saved: Any, kind: str, options: tuple[Any, ...]) -> Any:
    dx = empty(saved, saved.shape)
    blocks = ceil_div(dx.nbytes, 16 * 256)
    activation_backward_v2_vector[dx.dtype](blocks, 256, grad, saved, dx, dx.size, *_numbers(kind, options))
    return dx


VERSIONS = {
    "activation_forward": {"v2_vector": activation_forward},
    "activation_backward": {"v2_vector": activation_backward},
}
