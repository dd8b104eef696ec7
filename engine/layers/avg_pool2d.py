"""``AvgPool2d``: the mean of each window."""

from __future__ import annotations

from ...autograd import Tensor
from ...autograd import functional as F
from ...kernels._contracts import pair
from ..module import Module
from ._checks import count


class AvgPool2d(Module):
    """The mean of each window.

    Args:
        kernel_size, padding: in elements; one integer or (vertical, horizontal).
        stride: likewise; None means ``kernel_size``.
        ceil_mode: whether a last window that is not whole counts.
        count_include_pad: whether the zeros of the padding count as elements.
        divisor_override: what to divide by instead of the number of elements.

    Shapes: (N, C, H, W) -> (N, C, P, Q), P = (H + 2·padding - R) // stride + 1.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        pair("AvgPool2d", "kernel_size", kernel_size, 1)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        pair("AvgPool2d", "stride", self.stride, 1)
        pair("AvgPool2d", "padding", padding, 0)
        self.padding = padding
        self.ceil_mode = bool(ceil_mode)
        self.count_include_pad = bool(count_include_pad)
        if divisor_override is not None:
            count("AvgPool2d", "divisor_override", divisor_override)
        self.divisor_override = divisor_override

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(
            input,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            ceil_mode=self.ceil_mode,
            count_include_pad=self.count_include_pad,
            divisor_override=self.divisor_override,
        )

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
