"""Maximum over windows, on the operation ``max_pool2d``.

The codes say where each maximum came from; given them the pass is linear, so gradients of every
order are gathers and scatters at the codes.
"""

from __future__ import annotations

from typing import Any

from ...kernels.max_pool2d import geometry, max_pool2d_backward, max_pool2d_forward, max_pool2d_gather
from ..function import Function
from ..tensor import Tensor


class MaxPool2d(Function):
    """The largest element of each window"""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
    ) -> Any:
        y, codes = max_pool2d_forward(
            x.array, kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode
        )
        ctx.geometry = geometry(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
        ctx.save_for_backward(codes)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (codes,) = ctx.saved_tensors
        return MaxPool2dBackward.apply(grad, codes, ctx.geometry), *(None,) * 5


class MaxPool2dBackward(Function):
    """Each window's gradient, given to the element at its code"""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, codes: Tensor, geometry: Any) -> Any:
        ctx.geometry = geometry
        ctx.save_for_backward(codes)
        return max_pool2d_backward(grad.array, codes.array, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (codes,) = ctx.saved_tensors
        return MaxPool2dGather.apply(grad, codes, ctx.geometry), None, None


class MaxPool2dGather(Function):
    """The elements at the codes: the adjoint of :class:`MaxPool2dBackward`"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, geometry: Any) -> Any:
        ctx.geometry = geometry
        ctx.save_for_backward(codes)
        return max_pool2d_gather(x.array, codes.array, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (codes,) = ctx.saved_tensors
        return MaxPool2dBackward.apply(grad, codes, ctx.geometry), None, None
