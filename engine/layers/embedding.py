"""``Embedding``: a table of vectors, looked up by index."""

from __future__ import annotations

from typing import Any

from ...autograd import Tensor
from ...autograd import functional as F
from ...kernels._errors import ArgumentError
from .. import init
from ..module import Module
from ._checks import axis, count, parameter


class Embedding(Module):
    """The row of ``weight`` for each index.

    Args:
        num_embeddings, embedding_dim: the table's rows and their length.
        padding_idx: a row that is zero at first and receives no gradient; negative counts from the end.
        device, dtype: of the table; the CPU and float32 by default.

    Parameters: ``weight`` (num_embeddings, embedding_dim), normal with mean 0 and variance 1.

    Shapes: integers (…) -> (…, embedding_dim).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = count("Embedding", "num_embeddings", num_embeddings)
        self.embedding_dim = count("Embedding", "embedding_dim", embedding_dim)
        if padding_idx is not None:
            row = axis("Embedding", "padding_idx", padding_idx)
            if not -num_embeddings <= row < num_embeddings:
                raise ArgumentError(
                    f"Embedding: padding_idx must lie in [{-num_embeddings}, {num_embeddings}); got {padding_idx}"
                )
            padding_idx = row % num_embeddings
        self.padding_idx = padding_idx
        self.weight = parameter((self.num_embeddings, self.embedding_dim), device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            self.weight.array[self.padding_idx] = 0

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight, padding_idx=self.padding_idx)

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        return text if self.padding_idx is None else f"{text}, padding_idx={self.padding_idx}"
