"""Softmax and its logarithm along a dimension, on the operation ``softmax``."""

from __future__ import annotations

from typing import Any

from ...kernels._dtypes import kind_of
from ...kernels.softmax import log_softmax_backward, log_softmax_forward, softmax_backward, softmax_forward
from ..function import Function
from ..graph import is_grad_enabled
from ..tensor import DEFAULT_FLOAT, Tensor
from ._operands import axis


class Softmax(Function):
    """y = e^x / Σ e^x; dL/dx = y (g - Σ g y)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Any:
        ctx.dim = dim
        y = softmax_forward(x.array, dim)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        if is_grad_enabled():
            return y * (grad - (grad * y).sum(ctx.dim, keepdim=True)), None
        return Tensor(softmax_backward(grad.array, y.array, ctx.dim)), None


class LogSoftmax(Function):
    """y = x - log Σ e^x; dL/dx = g - e^y Σ g"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Any:
        ctx.dim = dim
        y = log_softmax_forward(x.array, dim)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        if is_grad_enabled():
            return grad - y.exp() * grad.sum(ctx.dim, keepdim=True), None
        return Tensor(log_softmax_backward(grad.array, y.array, ctx.dim)), None


def _apply(function: type[Function], name: str, x: Tensor, dim: int) -> Tensor:
    where = axis(name, dim, x.ndim)
    if kind_of(x.dtype) != "f":
        x = x.to(dtype=DEFAULT_FLOAT)
    if x.ndim == 0:
        return function.apply(x.reshape(1), 0).reshape(())
    return function.apply(x, where)


def softmax(x: Tensor, dim: int) -> Tensor:
    """e^x along ``dim``, scaled to add up to one."""
    return _apply(Softmax, "softmax", x, dim)


def log_softmax(x: Tensor, dim: int) -> Tensor:
    """The logarithm of :func:`softmax`, safe for large elements."""
    return _apply(LogSoftmax, "log_softmax", x, dim)
