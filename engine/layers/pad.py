"""``ZeroPad2d``: zeros round a picture, each side by its own amount."""

from __future__ import annotations

import numpy as np

from ...autograd import Tensor
from ...autograd import functional as F
from ...kernels._errors import ArgumentError
from ..module import Module


class ZeroPad2d(Module):
    """Zeros round the last two dimensions.

    Args:
        padding: (left, right, top, bottom), or one integer for all four.

    Shapes: (N, C, H, W) -> (N, C, top + H + bottom, left + W + right).
    """

    def __init__(self, padding: int | tuple[int, int, int, int]) -> None:
        super().__init__()
        four = (padding,) * 4 if isinstance(padding, int | np.integer) else padding
        if (
            not isinstance(four, tuple | list)
            or len(four) != 4
            or any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0 for n in four)
        ):
            raise ArgumentError(
                f"ZeroPad2d: padding must be (left, right, top, bottom) or one integer, not negative; got {padding!r}"
            )
        self.padding = tuple(int(n) for n in four)

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding)

    def extra_repr(self) -> str:
        return str(self.padding)
