"""One step of RMSProp over a list of parameters, in place.

Legend: θ a parameter, g its gradient, s the running average of g², m that of g (if centered), v the
momentum buffer (if momentum > 0); η lr, α alpha, μ momentum, λ weight_decay; all elementwise.

Step::

    g <- g + λ θ
    s <- α s + (1 - α) g²
    m <- α m + (1 - α) g
    d  = g / (sqrt(s) + eps)             plain
         g / (sqrt(s - m²) + eps)        centered; s - m² is at least 0 but for rounding, and taken so
    v <- μ v + d
    θ <- θ - η d                         plain
         θ - η v                         with momentum

θ, s, m and v are overwritten, g is not.  These are torch's equations (where the rounding may give
NaN).

Sources: Tieleman and Hinton, lecture 6.5 of "Neural networks for machine learning", 2012; Graves,
"Generating sequences with recurrent neural networks", 2013 (centered).

Checks: lists of equal length, shapes and dtype; options in their domains.
Backends: ``numpy`` (reference.py), ``numba`` (numba_cpu.py), ``cuda`` and ``emulated`` (cuda.py, rmsprop.cu);
``numba_cuda`` (numba_cuda.py, twins of some versions).
"""

from __future__ import annotations

from typing import Any

from .._dispatch import Operation
from .._errors import ArgumentError
from .._steps import Arrays, check_decay_rates, check_lists, check_options

_operation = Operation(__name__)


def rmsprop_step(
    params: Arrays,
    grads: Arrays,
    square_avgs: Arrays,
    momentum_buffers: Arrays | None,
    grad_avgs: Arrays | None,
    lr: Any,
    *,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    version: str | None = None,
) -> None:
    """One step; ``params``, ``square_avgs``, ``momentum_buffers`` and ``grad_avgs`` are overwritten.

    Args:
        params, grads, square_avgs, momentum_buffers, grad_avgs: lists of arrays, all float32 or all
            float64, on one device. ``momentum_buffers`` is None exactly if ``momentum`` is 0;
            ``grad_avgs`` is None unless the averages are to be centered.
        lr: one-element array on the device, float64 or the dtype of ``params``.
        version: the version of the kernel to run, by name.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    device = check_lists(
        "rmsprop",
        lr,
        params=params,
        grads=grads,
        square_avgs=square_avgs,
        momentum_buffers=momentum_buffers,
        grad_avgs=grad_avgs,
    )
    check_options("rmsprop", eps=eps, momentum=momentum, weight_decay=weight_decay)
    check_decay_rates("rmsprop", alpha=alpha)
    if (momentum_buffers is None) != (momentum == 0):
        came = "None" if momentum_buffers is None else "a list"
        raise ArgumentError(f"rmsprop: momentum_buffers must be None exactly if momentum is 0; got {came}, {momentum=}")
    _operation.run(
        "rmsprop_step",
        device,
        params,
        grads,
        square_avgs,
        momentum_buffers,
        grad_avgs,
        lr,
        float(alpha),
        float(eps),
        float(momentum),
        float(weight_decay),
        version=version,
    )
