"""Layers that change the shape only, or nothing."""

from __future__ import annotations

from typing import Any

from ...autograd import Tensor
from ..module import Module
from ._checks import axis


class Flatten(Module):
    """Join the dimensions ``start_dim`` … ``end_dim`` into one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = axis("Flatten", "start_dim", start_dim)
        self.end_dim = axis("Flatten", "end_dim", end_dim)

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Identity(Module):
    """The input itself; takes and ignores any arguments, so that it can stand in for another layer."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return input
