"""``MaxPool2d``: the greatest value of each window."""

from __future__ import annotations

from ...autograd import Tensor
from ...autograd import functional as F
from ...kernels._contracts import pair
from ..module import Module


class MaxPool2d(Module):
    """The maximum of each window; ties go to the first element, NaN wins.

    Args:
        kernel_size, padding, dilation: in elements; one integer or (vertical, horizontal).
        stride: likewise; None means ``kernel_size``.
        ceil_mode: whether a last window that is not whole counts.

    Shapes: (N, C, H, W) -> (N, C, P, Q), P = (H + 2·padding - dilation·(R - 1) - 1) // stride + 1.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        *,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        pair("MaxPool2d", "kernel_size", kernel_size, 1)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        pair("MaxPool2d", "stride", self.stride, 1)
        pair("MaxPool2d", "padding", padding, 0)
        pair("MaxPool2d", "dilation", dilation, 1)
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = bool(ceil_mode)

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(
            input,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            ceil_mode=self.ceil_mode,
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )
