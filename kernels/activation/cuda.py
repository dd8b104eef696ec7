"""Launcher of activation.cu: grids, and the numbers by which the sources know the activations."""

from __future__ import annotations

from typing import Any

from .._launch import FLOATS, Kernel, ceil_div, empty, result

#: enum Activation of kernels/_cuda/activation.cuh; gelu's approximation has a number of its own.
KIND_NUMBERS = {
    None: 0,
    "relu": 1,
    "leaky_relu": 2,
    "elu": 3,
    "sigmoid": 4,
    "tanh": 5,
    "silu": 6,
    "gelu": 7,
    "gelu_tanh": 8,
    "softplus": 9,
}
_THREADS = 256
#: From so many bytes on a thread owns 32 of them: that makes 1056 blocks, eight for each of 132 multiprocessors.
_LARGE = 1056 * 32 * _THREADS

_FORWARD_PLAIN = Kernel(__file__, "activation_forward_v1_plain", T=FLOATS)
_FORWARD_VECTOR = Kernel(__file__, "activation_forward_v2_vector", T=FLOATS)
_FORWARD_AHEAD = Kernel(__file__, "activation_forward_v3_ahead", T=FLOATS)
_BACKWARD_PLAIN = Kernel(__file__, "activation_backward_v1_plain", T=FLOATS)
_BACKWARD_VECTOR = Kernel(__file__, "activation_backward_v2_vector", T=FLOATS)


def kind_number(kind: str | None) -> int:
    """The number of an activation in the CUDA sources."""
    return KIND_NUMBERS[kind]


def _numbers(kind: str, options: tuple[Any, ...]) -> tuple[int, float, float]:
    """The kind and its options p and q as the kernels take them."""
    if kind == "gelu":
        return KIND_NUMBERS["gelu_tanh" if options[0] == "tanh" else "gelu"], 0.0, 0.0
    p, q = (*options, 0.0, 0.0)[:2]
    return KIND_NUMBERS[kind], p, q


def _forward_plain(x: Any, kind: str, options: tuple[Any, ...], out: Any) -> Any:
    y = result(out, x, x.shape)
    _FORWARD_PLAIN[x.dtype](ceil_div(x.size, _THREADS), _THREADS, x, y, x.size, *_numbers(kind, options))
    return y


def _forward_vector(x: Any, kind: str, options: tuple[Any, ...], out: Any) -> Any:
    y = result(out, x, x.shape)
    blocks = ceil_div(x.nbytes, 16 * _THREADS)
    _FORWARD_VECTOR[x.dtype](blocks, _THREADS, x, y, x.size, *_numbers(kind, options))
    return y


def _forward_ahead(x: Any, kind: str, options: tuple[Any, ...], out: Any) -> Any:
    y = result(out, x, x.shape)
    blocks = ceil_div(x.nbytes, 32 * _THREADS)
    _FORWARD_AHEAD[x.dtype](blocks, _THREADS, x, y, x.size, *_numbers(kind, options))
    return y


def activation_forward(x: Any, kind: str, options: tuple[Any, ...], out: Any) -> Any:
    """As the reference's; see the package's docstring.

    v3 where it makes several blocks for each multiprocessor of a large GPU, v2 below; by the model of
    docs/kernels/activation.md, not by measurement.
    """
    version = _forward_ahead if x.nbytes >= _LARGE else _forward_vector
    return version(x, kind, options, out)


def _backward_plain(grad: Any, saved: Any, kind: str, options: tuple[Any, ...]) -> Any:
    dx = empty(saved, saved.shape)
    blocks = ceil_div(dx.size, _THREADS)
    _BACKWARD_PLAIN[dx.dtype](blocks, _THREADS, grad, saved, dx, dx.size, *_numbers(kind, options))
    return dx


def activation_backward(grad: Any, saved: Any, kind: str, options: tuple[Any, ...]) -> Any:
    """As the reference's; see the package's docstring."""
    dx = empty(saved, saved.shape)
    blocks = ceil_div(dx.nbytes, 16 * _THREADS)
    _BACKWARD_VECTOR[dx.dtype](blocks, _THREADS, grad, saved, dx, dx.size, *_numbers(kind, options))
    return dx


VERSIONS = {
    "activation_forward": {"v1_plain": _forward_plain, "v2_vector": _forward_vector, "v3_ahead": _forward_ahead},
    "activation_backward": {"v1_plain": _backward_plain, "v2_vector": activation_backward},
}
