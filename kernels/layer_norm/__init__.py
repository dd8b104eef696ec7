"""Layer normalisation: each row gets mean 0 and variance 1, then a scale and shift per element.

Legend: x (rows..., normalized...), of which the last ``normalized_ndim`` dimensions, D elements, make
one row; sums and means run over a row unless they say "rows"; w, b (normalized...) weight, or 1, and
bias, or 0; g = dL/dy.

Forward::

    mean = (1/D) sum x           var = (1/D) sum (x - mean)²           rstd = 1 / sqrt(var + eps)
    xhat = (x - mean) rstd       y = w xhat + b

Backward, with h = w g::

    db = sum over rows of g      dw = sum over rows of g xhat
    dx = rstd (h - mean(h) - xhat mean(h xhat))

Source: Ba, Kiros and Hinton, "Layer normalization", 2016.

Checks: shapes and dtypes; rows have at least one element; eps >= 0.
Backends: ``numpy`` (reference.py); ``numba`` (numba_cpu.py); ``cuda`` and ``emulated`` (cuda.py, layer_norm.cu).
"""

from __future__ import annotations

from typing import Any

from .._contracts import check_shape, common_device, common_float
from .._dispatch import Operation
from .._errors import ArgumentError, ShapeError

_operation = Operation(__name__)


def _check(operation: str, x: Any, normalized_ndim: int, **of_row: Any) -> tuple[str, tuple[int, ...]]:
    """The device's name and the shape of the statistics, x.shape without the normalized dimensions."""
    device = common_device(operation, x=x, **of_row)
    common_float(operation, x=x, **of_row)
    if not isinstance(normalized_ndim, int) or not 1 <= normalized_ndim <= x.ndim:
        raise ArgumentError(
            f"{operation}: normalized_ndim must be in [1, {x.ndim}] for x of shape {tuple(x.shape)}; "
            f"got {normalized_ndim!r}"
        )
    rows, row = tuple(x.shape[: x.ndim - normalized_ndim]), tuple(x.shape[x.ndim - normalized_ndim :])
    if 0 in row:
        raise ShapeError(f"{operation}: the normalized dimensions of x must not be empty; got shape {tuple(x.shape)}")
    for argument, array in of_row.items():
        if array is not None:
            check_shape(operation, argument, array, row)
    return device, rows


def layer_norm_forward(x: Any, weight: Any, bias: Any, normalized_ndim: int, eps: float) -> tuple[Any, Any, Any]:
    """Normalise each row of ``x``.

    Args:
        x: (rows..., normalized...), float32 or float64.
        weight, bias: (normalized...) of the dtype of ``x``, or None.
        normalized_ndim: how many of the last dimensions make a row.
        eps: added to the variance.

    Returns:
        y of the shape of ``x``; mean and rstd, both (rows...), for the backward pass.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    device, _ = _check("layer_norm", x, normalized_ndim, weight=weight, bias=bias)
    if not 0 <= eps < float("inf"):
        raise ArgumentError(f"layer_norm: eps must be finite and >= 0; got {eps!r}")
    return _operation.run("layer_norm_forward", device, x, weight, bias, normalized_ndim, float(eps))


def layer_norm_backward(
    grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, normalized_ndim: int
) -> tuple[Any, Any, Any]:
    """dL/dx of the shape of ``x``, dL/dw and dL/db, both (normalized...), from ``grad`` = dL/dy.

    Args:
        grad: the shape and dtype of ``x``.
        x, weight, normalized_ndim: as in the forward pass.
        mean, rstd: (rows...), what the forward pass returned.
    """
    device, rows = _check("layer_norm_backward", x, normalized_ndim, weight=weight)
    common_device("layer_norm_backward", x=x, grad=grad, mean=mean, rstd=rstd)
    common_float("layer_norm_backward", x=x, grad=grad, mean=mean, rstd=rstd)
    check_shape("layer_norm_backward", "grad", grad, x.shape)
    check_shape("layer_norm_backward", "mean", mean, rows)
    check_shape("layer_norm_backward", "rstd", rstd, rows)
    return _operation.run("layer_norm_backward", device, grad, x, weight, mean, rstd, normalized_ndim)
