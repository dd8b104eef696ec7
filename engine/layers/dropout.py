"""``Dropout``: zeros at random while training."""

from __future__ import annotations

from ...autograd import Tensor
from ...autograd import functional as F
from ..module import Module
from ._checks import number


class Dropout(Module):
    """In training, each element becomes 0 with probability ``p`` and else grows by 1/(1 - p); in evaluation, x."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = number("Dropout", "p", p, 0.0, 1.0)

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, p=self.p, training=self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
