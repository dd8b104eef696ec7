"""Mean over windows, on the operation ``avg_pool2d``: linear, so its gradients are itself and its adjoint."""

from __future__ import annotations

from typing import Any

from ...kernels.avg_pool2d import avg_pool2d_backward, avg_pool2d_forward, geometry
from ..function import Function
from ..tensor import Tensor


class AvgPool2d(Function):
    """The mean of each window"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel_size: Any, options: tuple[Any, ...]) -> Any:
        ctx.kernel_size, ctx.options = kernel_size, options
        ctx.geometry = geometry(x.shape, kernel_size, *options)
        stride, padding, ceil_mode, count_include_pad, divisor_override = options
        return avg_pool2d_forward(
            x.array,
            kernel_size,
            stride=stride,
            padding=padding,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            divisor_override=divisor_override,
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return AvgPool2dBackward.apply(grad, ctx.geometry, ctx.kernel_size, ctx.options), None, None


class AvgPool2dBackward(Function):
    """Each window's gradient, spread evenly over its elements"""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, geometry: Any, kernel_size: Any, options: tuple[Any, ...]) -> Any:
        ctx.kernel_size, ctx.options = kernel_size, options
        return avg_pool2d_backward(grad.array, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return AvgPool2d.apply(grad, ctx.kernel_size, ctx.options), None, None, None
