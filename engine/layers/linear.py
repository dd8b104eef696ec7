"""``Linear``: a matrix product and a bias."""

from __future__ import annotations

import math
from typing import Any

from ...autograd import Tensor
from ...autograd import functional as F
from .. import init
from ..module import Module
from ._checks import count, parameter


class Linear(Module):
    """y = x Wᵀ + b.

    Args:
        in_features, out_features: sizes of the last dimension of x and of y.
        bias: whether there is a b.
        device, dtype: of the parameters; the CPU and float32 by default.

    Parameters: ``weight`` (out_features, in_features) and ``bias`` (out_features,), both uniform
    within ±1/sqrt(in_features).

    Shapes: (…, in_features) -> (…, out_features).
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.in_features = count("Linear", "in_features", in_features)
        self.out_features = count("Linear", "out_features", out_features)
        self.weight = parameter((self.out_features, self.in_features), device, dtype)
        self.register_parameter("bias", parameter((self.out_features,), device, dtype) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
