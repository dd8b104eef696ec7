"""``GroupNorm``: each group of channels of each sample to mean 0 and variance 1."""

from __future__ import annotations

from typing import Any

from ...autograd import Tensor
from ...autograd import functional as F
from ...kernels._errors import ArgumentError
from .. import init
from ..module import Module
from ._checks import count, number, parameter


class GroupNorm(Module):
    """y = (x - mean) / sqrt(var + eps) · weight + bias over each sample's groups of channels.

    Args:
        num_groups: parts into which the channels fall; must divide ``num_channels``.
        num_channels: number of channels.
        eps: added to the variance.
        affine: whether there are ``weight`` (ones at first) and ``bias`` (zeros), both (num_channels,).
        device, dtype: of the parameters; the CPU and float32 by default.

    Shapes: (N, C, …), and the same out.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_groups = count("GroupNorm", "num_groups", num_groups)
        self.num_channels = count("GroupNorm", "num_channels", num_channels)
        if num_channels % num_groups:
            raise ArgumentError(f"GroupNorm: num_groups must divide num_channels; got {num_groups} and {num_channels}")
        self.eps = number("GroupNorm", "eps", eps, 0.0)
        self.affine = bool(affine)
        shape = (self.num_channels,)
        self.register_parameter("weight", parameter(shape, device, dtype) if affine else None)
        self.register_parameter("bias", parameter(shape, device, dtype) if affine else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights to one, biases to zero."""
        if self.affine:
            init.ones_(self.weight)
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"
