"""Convolution: three Functions closed under differentiation, on the operation ``conv2d``.

y = conv(x, w) is linear in x and in w.  With g = dL/dy, each pass is linear in both of its
arguments, and its derivatives are the other two passes:

=====================  ==================  ======================  ======================
pass                   gives               derivative by 1st       derivative by 2nd
=====================  ==================  ======================  ======================
Conv2d(x, w)           y                   BackwardInput(·, w)     BackwardWeight(x, ·)
BackwardInput(g, w)    dL/dx               Conv2d(·, w)            BackwardWeight(·, g)
BackwardWeight(x, g)   dL/dw               BackwardInput(g, ·)     Conv2d(x, ·)
=====================  ==================  ======================  ======================
"""

from __future__ import annotations

from typing import Any

from ...kernels.activation import activation_backward
from ...kernels.conv2d import (
    ACTIVATIONS,
    Geometry,
    conv2d_backward_bias,
    conv2d_backward_input,
    conv2d_backward_parameters,
    conv2d_backward_weight,
    conv2d_forward,
    conv2d_relu_pool_forward,
    geometry,
)
from ...kernels.max_pool2d import geometry as pool_geometry
from ...kernels.max_pool2d import max_pool2d_backward
from ..function import Function, differentiate_again
from ..graph import is_grad_enabled
from ..tensor import Tensor
from ._operands import raw
from .activation import activation as unfused_activation
from .max_pool2d import MaxPool2d


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], activation: str | None = None
) -> Any:
    stride, padding, dilation, groups = options
    return conv2d_forward(
        x.array,
        weight.array,
        raw(bias),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        activation=activation,
    )


def _gradients(
    wanted: tuple[bool, ...], x: Any, weight: Any, grad: Any, g: Geometry, y: Any = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dL/dx, dL/dw, dL/db: those wanted, from arrays."""
    dx = Tensor(conv2d_backward_input(grad, weight, g, y=y)) if wanted[0] else None
    if wanted[1] and wanted[2]:
        both = conv2d_backward_parameters(x, grad, g, y=y)
        return dx, Tensor(both[0]), Tensor(both[1])
    dw = Tensor(conv2d_backward_weight(x, grad, g, y=y)) if wanted[1] else None
    return dx, dw, Tensor(conv2d_backward_bias(grad, y=y)) if wanted[2] else None


class Conv2d(Function):
    """y = conv(x, w) + b"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Any:
        y = _forward(x, weight, bias, options)
        ctx.geometry = geometry(x.shape, weight.shape, *options)
        wanted = ctx.needs_input_grad
        ctx.save_for_backward(x if wanted[1] else None, weight if wanted[0] else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted, none = ctx.needs_input_grad, (None,) * 4
        if not is_grad_enabled():
            return *_gradients(wanted, raw(x), raw(weight), grad.array, ctx.geometry), *none
        return (
            None if weight is None else Conv2dBackwardInput.apply(grad, weight, ctx.geometry),
            None if x is None else Conv2dBackwardWeight.apply(x, grad, ctx.geometry),
            Conv2dBackwardBias.apply(grad) if wanted[2] else None,
            *none,
        )


def _conv2d(x: Tensor, weight: Tensor, g: Geometry) -> Tensor:
    return Conv2d.apply(x, weight, None, g.stride, g.paddings, g.dilation, g.G)


class Conv2dBackwardBias(Function):
    """dL/db from dL/dy: its sum over all but the channels"""

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Any:
        ctx.shape = grad.shape
        return conv2d_backward_bias(grad.array)

    @staticmethod
    def backward(ctx: Any, grad_b: Tensor) -> Any:
        return grad_b.reshape(1, -1, 1, 1).expand(*ctx.shape)


class Conv2dBackwardInput(Function):
    """dL/dx from dL/dy and w"""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, g: Geometry) -> Any:
        ctx.geometry = g
        wanted = ctx.needs_input_grad
        ctx.save_for_backward(grad if wanted[1] else None, weight if wanted[0] else None)
        return conv2d_backward_input(grad.array, weight.array, g)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor) -> Any:
        grad, weight = ctx.saved_tensors
        return (
            None if weight is None else _conv2d(grad_x, weight, ctx.geometry),
            None if grad is None else Conv2dBackwardWeight.apply(grad_x, grad, ctx.geometry),
            None,
        )


class Conv2dBackwardWeight(Function):
    """dL/dw from x and dL/dy"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor, g: Geometry) -> Any:
        ctx.geometry = g
        wanted = ctx.needs_input_grad
        ctx.save_for_backward(x if wanted[1] else None, grad if wanted[0] else None)
        return conv2d_backward_weight(x.array, grad.array, g)

    @staticmethod
    def backward(ctx: Any, grad_w: Tensor) -> Any:
        x, grad = ctx.saved_tensors
        return (
            None if grad is None else Conv2dBackwardInput.apply(grad, grad_w, ctx.geometry),
            None if x is None else _conv2d(x, grad_w, ctx.geometry),
            None,
        )


class Conv2dRelu(Function):
    """y = relu(conv(x, w) + b); its gradient passes where y > 0, then as conv's"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Any:
        y = _forward(x, weight, bias, options, "relu")
        ctx.geometry, ctx.options = geometry(x.shape, weight.shape, *options), options
        ctx.save_for_backward(x, weight, bias, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, bias, y = ctx.saved_tensors
        g, options, wanted, none = ctx.geometry, ctx.options, ctx.needs_input_grad, (None,) * 4
        if is_grad_enabled():
            return *differentiate_again(lambda x, w, b: _then_relu(x, w, b, options), (x, weight, bias), grad), *none
        return *_gradients(wanted, x.array, weight.array, grad.array, g, y.array), *none


def _then_relu(x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> Tensor:
    return unfused_activation(Conv2d.apply(x, weight, bias, *options), "relu")


class Conv2dReluPool(Function):
    """max_pool2d(relu(conv(x, w) + b)): where y > 0 its gradient goes to the element at the code, then as conv's"""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], pool: tuple[Any, ...]
    ) -> Any:
        g = geometry(x.shape, weight.shape, *options)
        p = pool_geometry(g.y_shape, *pool)
        y, codes = conv2d_relu_pool_forward(x.array, weight.array, raw(bias), g, p)
        ctx.geometry, ctx.options = (g, p), (options, pool)
        ctx.save_for_backward(x, weight, bias, y, codes)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, bias, y, codes = ctx.saved_tensors
        g, p = ctx.geometry
        wanted = ctx.needs_input_grad
        if is_grad_enabled():
            return *differentiate_again(lambda *of: _unfused(*of, *ctx.options), (x, weight, bias), grad), None, None
        h = max_pool2d_backward(activation_backward(grad.array, y.array, "relu"), codes.array, p)
        return *_gradients(wanted, x.array, weight.array, h, g), None, None


def _unfused(x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], pool: tuple[Any, ...]) -> Tensor:
    return MaxPool2d.apply(_then_relu(x, weight, bias, options), *pool)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], activation: str | None = None
) -> Tensor:
    """See :func:`rawgrad.functional.conv2d`."""
    if activation in ACTIVATIONS:
        return Conv2dRelu.apply(x, weight, bias, *options)
    y: Tensor = Conv2d.apply(x, weight, bias, *options)
    return y if activation is None else unfused_activation(y, activation)
