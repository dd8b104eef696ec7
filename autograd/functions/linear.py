"""x wᵀ + b with an activation on top, in one call of ``gemm``."""

from __future__ import annotations

from typing import Any

from ...kernels._errors import ShapeError
from ...kernels.gemm import BY_OUTPUT, gemm, linear_backward
from ..function import Function, differentiate_again
from ..graph import is_grad_enabled
from ..tensor import Tensor
from ._operands import raw
from .activation import activation as unfused_activation
from .matmul import MatMul


class Linear(Function):
    """y = f(x wᵀ + b) of rows x (M, K), w (N, K), b (N); with h = g f': dx = h w, dw = hᵀ x, db = Σ h"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Any:
        y = gemm(x.array, weight.array, raw(bias), transpose_b=True, activation=activation)
        ctx.activation = activation
        ctx.save_for_backward(x, weight, bias, y if activation else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, bias, y = ctx.saved_tensors
        if is_grad_enabled():
            return *differentiate_again(
                lambda x, w, b: _unfused(x, w, b, ctx.activation), (x, weight, bias), grad
            ), None
        gradients = linear_backward(
            grad.array, x.array, weight.array, raw(y), activation=ctx.activation, wanted=ctx.needs_input_grad[:3]
        )
        return *[None if gradient is None else Tensor(gradient) for gradient in gradients], None


def _unfused(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    y = MatMul.apply(x, weight, False, True)
    y = y if bias is None else y + bias
    return unfused_activation(y, activation) if activation else y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """See :func:`rawgrad.functional.linear`."""
    if weight.ndim != 2:
        raise ShapeError(f"linear: weight must have 2 dimensions (out, in); got shape {tuple(weight.shape)}")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"linear: the last size of input must be in_features = {weight.shape[1]} to match weight of shape "
            f"{tuple(weight.shape)}; got input of shape {tuple(x.shape)}"
            + ("; flatten it first?" if x.ndim > 2 and x.numel() == x.shape[0] * weight.shape[1] else "")
        )
    # In one kernel only where its gradient needs no more than the result.
    fused = activation if activation in BY_OUTPUT else None
    rows = x if x.ndim == 2 else x.reshape(x.numel() // max(x.shape[-1], 1), x.shape[-1])
    y: Tensor = Linear.apply(rows, weight, bias, fused)
    if x.ndim != 2:
        y = y.reshape(*x.shape[:-1], weight.shape[0])
    return unfused_activation(y, activation) if activation is not None and fused is None else y
