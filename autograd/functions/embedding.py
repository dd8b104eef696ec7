"""Rows of a table, on the operation ``embedding``."""

from __future__ import annotations

from typing import Any

from ...kernels.embedding import embedding_backward, embedding_forward
from ..function import Function
from ..tensor import Tensor


class Embedding(Function):
    """weight[indices]; the gradient adds up where an index repeats, and is 0 at ``padding_idx``"""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, indices: Tensor, padding_idx: int | None) -> Any:
        ctx.rows, ctx.padding_idx = weight.shape[0] if weight.ndim else 0, padding_idx
        ctx.save_for_backward(indices)
        return embedding_forward(weight.array, indices.array)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        return EmbeddingBackward.apply(grad, indices, ctx.rows, ctx.padding_idx), None, None


class EmbeddingBackward(Function):
    """Rows added up by index: the adjoint of :class:`Embedding`"""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, indices: Tensor, rows: int, padding_idx: int | None) -> Any:
        ctx.padding_idx = padding_idx
        ctx.save_for_backward(indices)
        return embedding_backward(grad.array, indices.array, rows, padding_idx)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        gathered = Embedding.apply(grad, indices, None)
        if ctx.padding_idx is not None:
            gathered = gathered * (indices != ctx.padding_idx).unsqueeze(-1)
        return gathered, None, None, None
