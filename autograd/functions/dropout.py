"""Dropout, on the operation ``dropout``: the mask is a function of (seed, offset), so it is never stored."""

from __future__ import annotations

from typing import Any

from ...kernels.dropout import dropout_forward
from ..function import Function
from ..random import Generator
from ..tensor import Tensor


class Dropout(Function):
    """x / (1 - p) where the mask keeps it, else 0; linear, and its own gradient"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: int, offset: Any) -> Any:
        ctx.options = p, seed, offset
        return dropout_forward(x.array, p, seed, offset)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Dropout.apply(grad, *ctx.options), None, None, None


def dropout(x: Tensor, p: float, generator: Generator) -> Tensor:
    """Draw a new mask from ``generator`` and apply it."""
    return Dropout.apply(x, p, generator.seed, generator.offset_array(x.device))
