"""``Softmax`` and ``LogSoftmax`` along one dimension."""

from __future__ import annotations

from ...autograd import Tensor
from ...autograd import functional as F
from ..module import Module
from ._checks import axis


class Softmax(Module):
    """eˣ / sum eˣ along ``dim``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = axis("Softmax", "dim", dim)

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, dim=self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class LogSoftmax(Module):
    """x - log sum eˣ along ``dim``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = axis("LogSoftmax", "dim", dim)

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, dim=self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
