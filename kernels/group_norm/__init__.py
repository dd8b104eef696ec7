"""Group normalisation: each group of channels of each example gets mean 0 and variance 1.

Legend: x (N, C, ...); G groups of C/G neighbouring channels; means run over one group of one example,
its C/G channels and all positions; w (C,) weight, or 1; b (C,) bias, or 0; g = dL/dy.

Forward::

    mean[n,G] = mean of x        var[n,G] = mean of (x - mean)²        rstd[n,G] = 1 / sqrt(var + eps)
    xhat = (x - mean) rstd       y = w xhat + b

Backward, with h = w g::

    db[c] = sum of g and dw[c] = sum of g xhat over examples and positions
    dx    = rstd (h - mean(h) - xhat mean(h xhat))

G = C is instance normalisation.

Source: Wu and He, "Group normalization", 2018.

Checks: ranks, shapes, dtypes; G divides C; groups are not empty; eps >= 0.
Backends: ``numpy`` (reference.py); ``numba`` (numba_cpu.py); ``cuda`` and ``emulated`` (cuda.py, group_norm.cu).
"""

from __future__ import annotations

from typing import Any

from .._contracts import check_shape, common_device, common_float
from .._dispatch import Operation
from .._errors import ArgumentError, ShapeError

_operation = Operation(__name__)


def _check(operation: str, x: Any, groups: int, **per_channel: Any) -> str:
    """Check all but eps; the device's name."""
    device = common_device(operation, x=x, **per_channel)
    common_float(operation, x=x, **per_channel)
    if x.ndim < 2:
        raise ShapeError(f"{operation}: x must have at least 2 dimensions (N, C, ...); got shape {tuple(x.shape)}")
    C = x.shape[1]
    if not isinstance(groups, int) or groups < 1 or C % groups:
        raise ArgumentError(f"{operation}: groups must be a divisor of the {C} channels of x; got {groups!r}")
    if 0 in x.shape[1:]:
        raise ShapeError(f"{operation}: the groups of x must not be empty; got shape {tuple(x.shape)}")
    for argument, array in per_channel.items():
        if array is not None:
            check_shape(operation, argument, array, (C,), "C")
    return device


def group_norm_forward(x: Any, groups: int, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """Normalise each group of channels of each example of ``x``.

    Args:
        x: (N, C, ...), float32 or float64.
        groups: how many; a divisor of C.
        weight, bias: (C,) of the dtype of ``x``, or None.
        eps: added to the variance.

    Returns:
        y of the shape of ``x``; mean and rstd, both (N, groups), for the backward pass.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    device = _check("group_norm", x, groups, weight=weight, bias=bias)
    if not 0 <= eps < float("inf"):
        raise ArgumentError(f"group_norm: eps must be finite and >= 0; got {eps!r}")
    return _operation.run("group_norm_forward", device, x, groups, weight, bias, float(eps))


def group_norm_backward(grad: Any, x: Any, groups: int, weight: Any, mean: Any, rstd: Any) -> tuple[Any, Any, Any]:
    """dL/dx of the shape of ``x``, dL/dw and dL/db, both (C,), from ``grad`` = dL/dy.

    Args:
        grad: the shape and dtype of ``x``.
        x, groups, weight: as in the forward pass.
        mean, rstd: (N, groups), what the forward pass returned.
    """
    device = _check("group_norm_backward", x, groups, weight=weight)
    common_device("group_norm_backward", x=x, grad=grad, mean=mean, rstd=rstd)
    common_float("group_norm_backward", x=x, grad=grad, mean=mean, rstd=rstd)
    check_shape("group_norm_backward", "grad", grad, x.shape)
    check_shape("group_norm_backward", "mean", mean, (x.shape[0], groups), "N groups")
    check_shape("group_norm_backward", "rstd", rstd, (x.shape[0], groups), "N groups")
    return _operation.run("group_norm_backward", device, grad, x, groups, weight, mean, rstd)
