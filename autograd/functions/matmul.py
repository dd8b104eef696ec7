"""Matrix products of any rank, on the operation ``gemm``."""

from __future__ import annotations

from typing import Any

from ...kernels._errors import ShapeError
from ...kernels.gemm import gemm
from ..function import Function
from ..tensor import Tensor
from ._operands import as_operand, sum_to
from .elementwise import unify
from .shape import reshape


class MatMul(Function):
    """C = op(A) op(B), where op transposes the last two dimensions or not; batches broadcast.

    With G = dL/dC::

        dL/dop(A) = G op(B)ᵀ        dL/dop(B) = op(A)ᵀ G
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False) -> Any:
        ctx.transposed = transpose_a, transpose_b
        ctx.save_for_backward(a if ctx.needs_input_grad[1] else None, b if ctx.needs_input_grad[0] else None)
        ctx.shapes = a.shape, b.shape
        return gemm(a.array, b.array, transpose_a=transpose_a, transpose_b=transpose_b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        ta, tb = ctx.transposed
        grad_a = grad_b = None
        if b is not None:
            grad_a = MatMul.apply(b, grad, tb, True) if ta else MatMul.apply(grad, b, False, not tb)
            grad_a = sum_to(grad_a, ctx.shapes[0])
        if a is not None:
            grad_b = MatMul.apply(grad, a, True, ta) if tb else MatMul.apply(a, grad, not ta, False)
            grad_b = sum_to(grad_b, ctx.shapes[1])
        return grad_a, grad_b, *(None,) * (len(ctx.needs_input_grad) - 2)


def matmul(a: Any, b: Any) -> Any:
    """``a @ b`` as torch defines it.

    One-dimensional arguments are a row on the left and a column on the right, and that dimension
    is dropped from the result; leading dimensions are batches and broadcast.
    """
    like = a if isinstance(a, Tensor) else b
    a, b = as_operand("matmul", a, like), as_operand("matmul", b, like)
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return NotImplemented
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"matmul: both tensors need at least one dimension; got {tuple(a.shape)} and {tuple(b.shape)}")
    inner_b = b.shape[-2] if b.ndim > 1 else b.shape[0]
    if a.shape[-1] != inner_b:
        raise ShapeError(
            f"matmul: the last size of the first tensor {tuple(a.shape)} must equal the "
            f"{'second-last' if b.ndim > 1 else 'only'} size of the second {tuple(b.shape)}: {a.shape[-1]} != {inner_b}"
        )
    a, b = unify("matmul", a, b)
    left = reshape(a, (1, *a.shape)) if a.ndim == 1 else a
    right = reshape(b, (*b.shape, 1)) if b.ndim == 1 else b
    if left.ndim > 2 and right.ndim == 2:  # one product of tall matrices instead of a batch of small ones
        product = MatMul.apply(reshape(left, (-1, left.shape[-1])) if left.numel() else left, right)
        product = reshape(product, (*left.shape[:-1], right.shape[-1]))
    else:
        product = MatMul.apply(left, right)
    if a.ndim == 1:
        product = reshape(product, (*product.shape[:-2], product.shape[-1]))
    return reshape(product, product.shape[:-1]) if b.ndim == 1 else product
