"""``LayerNorm``: each sample to mean 0 and variance 1 over its last dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...autograd import Tensor
from ...autograd import functional as F
from ...kernels._errors import ArgumentError
from .. import init
from ..module import Module
from ._checks import count, number, parameter


class LayerNorm(Module):
    """y = (x - mean) / sqrt(var + eps) · weight + bias over the last dimensions.

    Args:
        normalized_shape: sizes of the last dimensions, or one integer for the very last.
        eps: added to the variance.
        elementwise_affine: whether there is a ``weight`` (ones at first) of shape ``normalized_shape``.
        bias: whether there is also a ``bias`` (zeros at first).
        device, dtype: of the parameters; the CPU and float32 by default.

    Shapes: (…, *normalized_shape), and the same out.
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...] | list[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        sizes = (normalized_shape,) if isinstance(normalized_shape, int | np.integer) else normalized_shape
        if not isinstance(sizes, tuple | list) or not sizes:
            raise ArgumentError(
                f"LayerNorm: normalized_shape must be an integer or a tuple of integers; got {normalized_shape!r}"
            )
        self.normalized_shape = tuple(count("LayerNorm", "normalized_shape", size) for size in sizes)
        self.eps = number("LayerNorm", "eps", eps, 0.0)
        self.elementwise_affine = bool(elementwise_affine)
        has_bias = self.elementwise_affine and bias
        shape = self.normalized_shape
        self.register_parameter("weight", parameter(shape, device, dtype) if elementwise_affine else None)
        self.register_parameter("bias", parameter(shape, device, dtype) if has_bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights to one, biases to zero."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )
