"""Fused softmax and cross-entropy: loss and gradient in one pass, on the operation of that name."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...kernels._dtypes import is_half, kind_of, wide
from ...kernels._errors import ShapeError
from ...kernels.softmax_cross_entropy import softmax_cross_entropy_forward
from ..function import Function, differentiate_again
from ..graph import is_grad_enabled
from ..tensor import DEFAULT_FLOAT, Tensor
from .elementwise import where
from .softmax import log_softmax


class SoftmaxCrossEntropy(Function):
    """The loss of logits (N, C); its gradient is ready before the backward pass begins"""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]) -> Any:
        loss, gradient = softmax_cross_entropy_forward(
            logits.array, target.array, weight=None if weight is None else weight.array, **options
        )
        ctx.options = options
        ctx.save_for_backward(logits, target, weight, gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        logits, target, weight, gradient = ctx.saved_tensors
        if is_grad_enabled() or ctx.needs_input_grad[1]:
            composed = differentiate_again(lambda x, t: _unfused(x, t, weight, **ctx.options), (logits, target), grad)
            return *composed, None, None
        if ctx.unit_gradient:  # ready as it is; a copy if the graph is used again
            return gradient.clone() if ctx.graph_retained else gradient, None, None, None
        scaled = gradient * grad.reshape(*grad.shape, *(1,) * (2 - grad.ndim))  # of halves in float32, as the loss is
        return scaled.to(dtype=gradient.dtype), None, None, None


def _unfused(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """The same loss in operations that can be differentiated any number of times; of halves in float32."""
    logits = logits.to(dtype=wide(logits.dtype))
    if is_half(target.dtype):
        target = target.to(dtype=DEFAULT_FLOAT)
    if weight is not None:
        weight = weight.to(dtype=wide(weight.dtype))
    logp = log_softmax(logits, 1)  # (N, C)
    xp, classes = logits.array_module, logits.shape[1]
    if kind_of(target.dtype) == "f":
        probabilities, rows = target, None
    else:
        labels = target.array.astype(np.int64, copy=False)  # the labels' own dtype need not hold ignore_index
        kept = labels != ignore_index
        one_hot = (xp.arange(classes) == xp.where(kept, labels, 0)[:, None]) & kept[:, None]
        probabilities, rows = Tensor(one_hot.astype(logits.dtype)), kept
    smoothed = probabilities * (1 - label_smoothing) + label_smoothing / classes
    if weight is not None:
        smoothed = smoothed * weight.detach()
    losses = -(smoothed * where(smoothed == 0, 0.0, logp)).sum(1)  # (N,)
    if rows is not None:
        losses = where(Tensor(rows), losses, 0.0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if rows is None:
        return losses.sum() / logits.shape[0]
    weights = probabilities if weight is None else probabilities * weight.detach()
    return losses.sum() / weights.sum()


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """See :func:`rawgrad.functional.cross_entropy`."""
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    if logits.ndim == 0:
        raise ShapeError("cross_entropy: input must have a class dimension: (C), (N, C) or (N, C, d1, …); got ()")
    if logits.ndim == 2:
        return SoftmaxCrossEntropy.apply(logits, target, weight, options)
    # The kernel takes rows (N, C): a single row, or the positions of (N, C, d1, …) as rows.
    probabilities = target.ndim == logits.ndim
    if logits.ndim == 1:
        rows, targets = logits.reshape(1, -1), target.reshape(1, -1) if probabilities else target.reshape(1)
        positions: tuple[int, ...] = ()
    else:
        positions = (logits.shape[0], *logits.shape[2:])
        if (target.shape != logits.shape) if probabilities else (target.shape != positions):
            raise ShapeError(
                f"cross_entropy: target must have shape {positions} (labels) or {tuple(logits.shape)} (probabilities) "
                f"for input of shape {tuple(logits.shape)}; got {tuple(target.shape)}"
            )
        last = (0, *range(2, logits.ndim), 1)
        rows = logits.permute(last).reshape(-1, logits.shape[1])
        targets = target.permute(last).reshape(-1, logits.shape[1]) if probabilities else target.reshape(-1)
    loss: Tensor = SoftmaxCrossEntropy.apply(rows, targets, weight, options)
    if reduction == "none":
        return loss.reshape(positions)
    return loss
