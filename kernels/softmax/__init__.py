"""Softmax and its logarithm along one axis.

Legend: x the input, y the output, g = dL/dy; sums and maxima run along ``axis``, m = max x.

Forward; subtracting m changes nothing and keeps e^x from overflowing::

    softmax:      y = e^(x - m) / sum e^(x - m)
    log_softmax:  y = x - m - log sum e^(x - m)

Backward::

    softmax:      dL/dx = y (g - sum g y)
    log_softmax:  dL/dx = g - e^y sum g

An element of -inf gets probability 0.  NaN, +inf, or -inf all along the axis give NaN, as in torch.

Source: Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.

Checks: float32 or float64 of at least one dimension; the axis exists.
Backends: ``numpy`` (reference.py), ``numba`` (numba_cpu.py), ``cuda`` and ``emulated`` (cuda.py, softmax.cu).
"""

from __future__ import annotations

import operator
from typing import Any

from .._contracts import check_shape, common_device, common_float
from .._dispatch import Operation
from .._errors import ArgumentError, ShapeError

_operation = Operation(__name__)


def _checked_axis(operation: str, x: Any, axis: int) -> int:
    """``axis`` counted from the front."""
    if not x.ndim:
        raise ShapeError(f"{operation}: x must have at least one dimension; got shape ()")
    try:
        index = operator.index(axis)
    except TypeError:
        raise ArgumentError(f"{operation}: axis must be an integer; got {axis!r}") from None
    if not -x.ndim <= index < x.ndim:
        raise ArgumentError(
            f"{operation}: axis must be in [{-x.ndim}, {x.ndim}) for shape {tuple(x.shape)}; got {axis}"
        )
    return index % x.ndim


def _forward(operation: str, x: Any, axis: int) -> Any:
    device = common_device(operation, x=x)
    common_float(operation, x=x)
    return _operation.run(f"{operation}_forward", device, x, _checked_axis(operation, x, axis))


def _backward(operation: str, grad: Any, y: Any, axis: int) -> Any:
    device = common_device(f"{operation}_backward", grad=grad, y=y)
    common_float(f"{operation}_backward", grad=grad, y=y)
    check_shape(f"{operation}_backward", "grad", grad, y.shape)
    return _operation.run(f"{operation}_backward", device, grad, y, _checked_axis(f"{operation}_backward", y, axis))


def softmax_forward(x: Any, axis: int) -> Any:
    """The softmax of ``x`` (float32 or float64) along ``axis``; its shape and dtype.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    return _forward("softmax", x, axis)


def softmax_backward(grad: Any, y: Any, axis: int) -> Any:
    """dL/dx from ``grad`` = dL/dy and the output ``y`` of :func:`softmax_forward`."""
    return _backward("softmax", grad, y, axis)


def log_softmax_forward(x: Any, axis: int) -> Any:
    """The logarithm of the softmax of ``x`` (float32 or float64) along ``axis``; its shape and dtype.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    return _forward("log_softmax", x, axis)


def log_softmax_backward(grad: Any, y: Any, axis: int) -> Any:
    """dL/dx from ``grad`` = dL/dy and the output ``y`` of :func:`log_softmax_forward`."""
    return _backward("log_softmax", grad, y, axis)
