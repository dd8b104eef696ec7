"""Batch, layer and group normalisation, on the operations of those names.

All three are fused; under ``create_graph`` the gradient is that of the unfused composition
:func:`normalise`.
"""

from __future__ import annotations

from typing import Any

from ...kernels.batch_norm import batch_norm_backward, batch_norm_forward
from ...kernels.group_norm import group_norm_backward, group_norm_forward
from ...kernels.layer_norm import layer_norm_backward, layer_norm_forward
from ..function import Function, differentiate_again
from ..graph import is_grad_enabled
from ..tensor import Tensor
from ._operands import raw


def normalise(
    x: Tensor, dims: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...], eps: float
) -> Tensor:
    """(x - mean) / √(var + eps) over ``dims``, then scaled and shifted by parameters seen as ``shape``."""
    y = (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + eps).sqrt()
    if weight is not None:
        y = y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def _of_channels(x: Tensor) -> tuple[int, ...]:
    return (1, x.shape[1], *(1,) * (x.ndim - 2))


class _Norm(Function):
    """What the three share: save the inputs and the statistics, fall back when differentiated again"""

    @classmethod
    def forward(cls, ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, option: Any, eps: float) -> Any:
        y, mean, rstd = cls.fused(x.array, raw(weight), raw(bias), option, eps)
        ctx.option, ctx.eps = option, eps
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        if cls is BatchNorm:  # its statistics go into the running ones
            ctx.mark_non_differentiable(mean, rstd)
            return y, mean, rstd
        return y

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor, *unused: Any) -> Any:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if is_grad_enabled():
            composed = differentiate_again(
                lambda x, weight, bias: cls.composition(x, weight, bias, ctx.option, ctx.eps), (x, weight, bias), grad
            )
            return *composed, None, None
        gradients = cls.fused_backward(grad.array, x.array, raw(weight), mean.array, rstd.array, ctx.option)
        wanted = zip(gradients, ctx.needs_input_grad, strict=False)
        return *[Tensor(g) if needed else None for g, needed in wanted], None, None

    @staticmethod
    def fused(x: Any, weight: Any, bias: Any, option: Any, eps: float) -> Any:
        raise AssertionError

    @staticmethod
    def fused_backward(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, option: Any) -> Any:
        raise AssertionError

    @staticmethod
    def composition(x: Tensor, weight: Any, bias: Any, option: Any, eps: float) -> Tensor:
        raise AssertionError


class BatchNorm(_Norm):
    """Normalised per channel over the batch; also gives the batch's mean and 1/√(var + eps)"""

    @staticmethod
    def fused(x: Any, weight: Any, bias: Any, option: Any, eps: float) -> Any:
        return batch_norm_forward(x, weight, bias, eps)

    @staticmethod
    def fused_backward(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, option: Any) -> Any:
        return batch_norm_backward(grad, x, weight, mean, rstd)

    @staticmethod
    def composition(x: Tensor, weight: Any, bias: Any, option: Any, eps: float) -> Tensor:
        dims = tuple(d for d in range(x.ndim) if d != 1)
        return normalise(x, dims, weight, bias, _of_channels(x), eps)


class LayerNorm(_Norm):
    """Normalised over the last ``option`` dimensions"""

    @staticmethod
    def fused(x: Any, weight: Any, bias: Any, option: Any, eps: float) -> Any:
        return layer_norm_forward(x, weight, bias, option, eps)

    @staticmethod
    def fused_backward(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, option: Any) -> Any:
        return layer_norm_backward(grad, x, weight, mean, rstd, option)

    @staticmethod
    def composition(x: Tensor, weight: Any, bias: Any, option: Any, eps: float) -> Tensor:
        dims = tuple(range(x.ndim - option, x.ndim))
        return normalise(x, dims, weight, bias, x.shape[x.ndim - option :], eps)


class GroupNorm(_Norm):
    """Normalised over each of ``option`` groups of channels"""

    @staticmethod
    def fused(x: Any, weight: Any, bias: Any, option: Any, eps: float) -> Any:
        return group_norm_forward(x, option, weight, bias, eps)

    @staticmethod
    def fused_backward(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, option: Any) -> Any:
        return group_norm_backward(grad, x, option, weight, mean, rstd)

    @staticmethod
    def composition(x: Tensor, weight: Any, bias: Any, option: Any, eps: float) -> Tensor:
        grouped = x.reshape(x.shape[0], option, -1)
        y = normalise(grouped, (2,), None, None, (), eps).reshape(x.shape)
        shape = _of_channels(x)
        if weight is not None:
            y = y * weight.reshape(shape)
        return y if bias is None else y + bias.reshape(shape)
