"""``Conv2d``: two-dimensional convolution."""

from __future__ import annotations

import math
from typing import Any

from ...autograd import Tensor
from ...autograd import functional as F
from ...kernels._contracts import pair
from ...kernels._errors import ArgumentError
from .. import init
from ..module import Module
from ._checks import count, parameter


class Conv2d(Module):
    """Two-dimensional convolution (cross-correlation) with zero padding.

    Args:
        in_channels, out_channels: C and K of :mod:`rawgrad.kernels.conv2d`'s legend.
        kernel_size, stride, padding, dilation: in elements; one integer or (vertical, horizontal).
        groups: parts into which the channels fall; must divide both numbers of channels.
        bias: whether a bias is added.
        padding_mode: ``"zeros"``, the only one.
        device, dtype: of the parameters; the CPU and float32 by default.

    Parameters: ``weight`` (K, C/groups, R, S) and ``bias`` (K,), both uniform within
    ±1/sqrt(C/groups·R·S).

    Shapes: (N, C, H, W) -> (N, K, P, Q), P = (H + 2·padding - dilation·(R - 1) - 1) // stride + 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in_channels = count("Conv2d", "in_channels", in_channels)
        self.out_channels = count("Conv2d", "out_channels", out_channels)
        self.kernel_size = pair("Conv2d", "kernel_size", kernel_size, 1)
        self.stride = pair("Conv2d", "stride", stride, 1)
        self.padding = pair("Conv2d", "padding", padding, 0)
        self.dilation = pair("Conv2d", "dilation", dilation, 1)
        self.groups = count("Conv2d", "groups", groups)
        if in_channels % groups or out_channels % groups:
            raise ArgumentError(
                f"Conv2d: groups must divide in_channels and out_channels; got {groups}, {in_channels}, {out_channels}"
            )
        if padding_mode != "zeros":
            raise ArgumentError(f"Conv2d: padding_mode must be 'zeros'; got {padding_mode!r}")
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        self.weight = parameter(shape, device, dtype)
        self.register_parameter("bias", parameter((self.out_channels,), device, dtype) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(init.fans(self.weight.shape)[0])
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(
            input,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0, 0):
            text += f", padding={self.padding}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text if self.bias is not None else f"{text}, bias=False"
