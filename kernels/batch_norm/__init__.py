"""Batch normalisation: each channel gets mean 0 and variance 1, then its own scale and shift.

Legend: x (N, C, ...) of 2 to 5 dimensions; c a channel; M = x.size / C values per channel, over which
sums and means run; w (C,) weight, or 1; b (C,) bias, or 0; g = dL/dy.

Forward::

    mean[c] = (1/M) sum x        var[c] = (1/M) sum (x - mean)²        rstd[c] = 1 / sqrt(var + eps)
    xhat    = (x - mean) rstd    y = w xhat + b

Backward; mean and var depend on x::

    db[c] = sum g        dw[c] = sum g xhat
    dx    = w rstd (g - db/M - xhat dw/M)

Inference takes given (running) mean and variance: y = w (x - mean) / sqrt(var + eps) + b.

The variance is the biased one, as in the original; running averages are the caller's matter.

Source: Ioffe and Szegedy, "Batch normalization", 2015.

Checks: ranks, shapes, dtypes; statistics need at least one value per channel; eps >= 0.
Backends: ``numpy`` (reference.py); ``numba`` (numba_cpu.py); ``cuda`` and ``emulated`` (cuda.py, batch_norm.cu).
"""

from __future__ import annotations

from typing import Any

from .._contracts import check_shape, common_device, common_float
from .._dispatch import Operation
from .._errors import ArgumentError, ShapeError

_operation = Operation(__name__)


def _check(operation: str, x: Any, **per_channel: Any) -> str:
    """Check all but eps; the device's name."""
    device = common_device(operation, x=x, **per_channel)
    common_float(operation, x=x, **per_channel)
    if not 2 <= x.ndim <= 5:
        raise ShapeError(f"{operation}: x must have 2 to 5 dimensions (N, C, ...); got shape {tuple(x.shape)}")
    for argument, array in per_channel.items():
        if array is not None:
            check_shape(operation, argument, array, (x.shape[1],), "C")
    return device


def _check_eps(operation: str, eps: float) -> float:
    if not 0 <= eps < float("inf"):
        raise ArgumentError(f"{operation}: eps must be finite and >= 0; got {eps!r}")
    return float(eps)


def batch_norm_forward(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """Normalise ``x`` by the statistics of this batch.

    Args:
        x: (N, C, ...) of 2 to 5 dimensions, float32 or float64.
        weight, bias: (C,) of the dtype of ``x``, or None.
        eps: added to the variance.

    Returns:
        y of the shape of ``x``; mean and rstd, both (C,), for the backward pass. The variance is
        rstd**-2 - eps.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    device = _check("batch_norm", x, weight=weight, bias=bias)
    if not x.size and x.shape[1]:
        raise ShapeError(f"batch_norm: x must have at least one value per channel; got shape {tuple(x.shape)}")
    return _operation.run("batch_norm_forward", device, x, weight, bias, _check_eps("batch_norm", eps))


def batch_norm_inference(x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Any:
    """Normalise ``x`` by the given ``mean`` and ``var``, both (C,); otherwise as :func:`batch_norm_forward`."""
    device = _check("batch_norm_inference", x, mean=mean, var=var, weight=weight, bias=bias)
    eps = _check_eps("batch_norm_inference", eps)
    return _operation.run("batch_norm_inference", device, x, mean, var, weight, bias, eps)


def batch_norm_backward(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any) -> tuple[Any, Any, Any]:
    """dL/dx of the shape of ``x``, dL/dw and dL/db, both (C,), from ``grad`` = dL/dy.

    Args:
        grad: the shape and dtype of ``x``.
        x, weight: as in the forward pass.
        mean, rstd: (C,), what the forward pass returned.
    """
    device = _check("batch_norm_backward", x, weight=weight, mean=mean, rstd=rstd)
    common_device("batch_norm_backward", x=x, grad=grad)
    common_float("batch_norm_backward", x=x, grad=grad)
    check_shape("batch_norm_backward", "grad", grad, x.shape)
    return _operation.run("batch_norm_backward", device, grad, x, weight, mean, rstd)
