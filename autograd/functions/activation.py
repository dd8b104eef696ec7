"""Activations, on the operation ``activation``.

The gradient runs in the kernel; when it must itself be differentiated it is written with tensor
operations instead (``_SLOPES``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...kernels._dtypes import kind_of
from ...kernels.activation import activation_backward, activation_forward, saves
from ..function import Function
from ..graph import is_grad_enabled
from ..tensor import DEFAULT_FLOAT, Tensor
from .elementwise import where


class Activation(Function):
    """f(x), elementwise"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, options: dict[str, Any]) -> Any:
        y = activation_forward(x.array, kind, **options)
        ctx.kind, ctx.options = kind, options
        ctx.save_for_backward(x if saves(kind) == "input" else y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (saved,) = ctx.saved_tensors
        if is_grad_enabled():
            return grad * slope(saved, ctx.kind, ctx.options), None, None
        return Tensor(activation_backward(grad.array, saved.array, ctx.kind, **ctx.options)), None, None


def activation(x: Tensor, kind: str, **options: Any) -> Tensor:
    """The activation ``kind`` of ``x``; integers become float32 first."""
    if kind_of(x.dtype) != "f":
        x = x.to(dtype=DEFAULT_FLOAT)
    return Activation.apply(x, kind, options)


class _GeluSlope(Function):
    """Φ(x) + x φ(x); its derivative is φ(x) (2 - x²)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ctx.save_for_backward(x)
        return activation_backward(x.array_module.ones_like(x.array), x.array, "gelu")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        density = (x * x * -0.5).exp() * (1 / math.sqrt(2 * math.pi))
        return grad * (density * (2 - x * x))


def _gelu_slope(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return _GeluSlope.apply(x)
    c = math.sqrt(2 / math.pi)
    t = (c * (x + 0.044715 * x * x * x)).tanh()
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (c * (1 + 3 * 0.044715 * x * x))


def _silu_slope(x: Tensor) -> Tensor:
    s = x.sigmoid()
    return s + x * s * (1 - s)


def _softplus_slope(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    return where(x * beta > threshold, 1.0, (x * beta).sigmoid())


#: f'(x) in tensor operations, from the output y or the input x as the kernel saves it.
_SLOPES: dict[str, Callable[..., Tensor]] = {
    "relu": lambda y: (y > 0).to(dtype=y.dtype),
    "leaky_relu": lambda y, negative_slope=0.01: where(y > 0, 1.0, negative_slope * (y * 0 + 1)),
    "elu": lambda y, alpha=1.0: where(y > 0, 1.0, y + alpha),
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
    "silu": _silu_slope,
    "gelu": _gelu_slope,
    "softplus": _softplus_slope,
}


def slope(saved: Tensor, kind: str, options: dict[str, Any]) -> Tensor:
    """f'(x) as a tensor that can be differentiated."""
    return _SLOPES[kind](saved, **options)
