"""Gradient clipping, in place, without reading from the device (unless asked to refuse NaN)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import numpy as np

from ...autograd import Tensor
from ...kernels._contracts import common_device
from ...kernels._devices import device_of
from ...kernels._errors import ArgumentError, NonFiniteError


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    tensors = [parameters] if isinstance(parameters, Tensor) else parameters
    return [p.grad for p in tensors if p.grad is not None]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients by one factor so that their common norm is at most ``max_norm``.

    The norm is that of all gradients as one vector, computed in float64; the factor is
    max_norm / (norm + 1e-6) where that is less than one.

    Args:
        parameters: tensors; those without a gradient are passed over.
        max_norm: the greatest norm allowed.
        norm_type: p of the p-norm, or ``inf``.
        error_if_nonfinite: raise if the norm is NaN or infinite; otherwise the gradients become NaN
            or zero, as the arithmetic has it.

    Returns:
        The norm before clipping, a scalar tensor of the gradients' dtype.

    Raises:
        NonFiniteError: the norm is not finite, and ``error_if_nonfinite``; nothing is changed.
    """
    if not max_norm >= 0:
        raise ArgumentError(f"clip_grad_norm_: max_norm must not be negative; got {max_norm!r}")
    if not norm_type > 0:
        raise ArgumentError(f"clip_grad_norm_: norm_type must be positive or inf; got {norm_type!r}")
    grads = _gradients(parameters)
    if not grads:
        return Tensor(np.zeros((), np.float32))
    common_device("clip_grad_norm_", **{f"grad {i}": g.array for i, g in enumerate(grads)})
    xp = grads[0].array_module
    each = [xp.abs(g.array.astype(np.float64)) for g in grads if g.array.size]
    if math.isinf(norm_type):
        total = functools.reduce(xp.maximum, [a.max() for a in each]) if each else xp.zeros(())
    else:
        total = sum((xp.sum(a**norm_type) for a in each), xp.zeros(())) ** (1.0 / norm_type)
    if error_if_nonfinite and not bool(xp.isfinite(total)):
        raise NonFiniteError(f"clip_grad_norm_: the gradients' norm is {float(total)}; they are left as they are")
    factor = xp.minimum(max_norm / (total + 1e-6), 1.0)
    for g in grads:
        g.array *= factor.astype(g.dtype)
        g.written()
    return Tensor(xp.asarray(total, grads[0].dtype))


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Move every element of every gradient into [-clip_value, clip_value]; NaN stays NaN."""
    if not clip_value >= 0:
        raise ArgumentError(f"clip_grad_value_: clip_value must not be negative; got {clip_value!r}")
    for g in _gradients(parameters):
        xp = device_of(g.array).array_module
        xp.clip(g.array, -clip_value, clip_value, out=g.array)
        g.written()
