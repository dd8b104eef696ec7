"""One step of stochastic gradient descent over a list of parameters, in place.

Legend: θ a parameter, g its gradient, v its momentum buffer; t the number of this step, from 1;
η lr, μ momentum, τ dampening, λ weight_decay.

Step::

    g <- g + λ θ
    v <- g                   at t = 1
         μ v + (1 - τ) g     later                 (only if μ > 0)
    d  = g                   without momentum
         v                   with momentum
         g + μ v             with nesterov
    θ <- θ - η d

θ and v are overwritten, g is not.  These are torch's equations; at t = 1 the contents of v do not
matter.

Sources: Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Nesterov,
1983, in the form of Sutskever et al., "On the importance of initialization and momentum", 2013.

Checks: lists of equal length, shapes and dtype; options in their domains; nesterov needs momentum > 0
and no dampening.
Backends: ``numpy`` (reference.py), ``numba`` (numba_cpu.py), ``cuda`` and ``emulated`` (cuda.py, sgd.cu);
``numba_cuda`` (numba_cuda.py, twins of some versions).
"""

from __future__ import annotations

from typing import Any

from .._dispatch import Operation
from .._errors import ArgumentError
from .._steps import Arrays, check_lists, check_options

_operation = Operation(__name__)


def sgd_step(
    params: Arrays,
    grads: Arrays,
    momentum_buffers: Arrays | None,
    lr: Any,
    step: Any,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    version: str | None = None,
) -> None:
    """One step; ``params`` and ``momentum_buffers`` are overwritten.

    Args:
        params, grads, momentum_buffers: lists of arrays, all float32 or all float64, on one device;
            ``momentum_buffers`` is None exactly if ``momentum`` is 0.
        lr: one-element array on the device, float64 or the dtype of ``params``.
        step: one-element int64 array on the device, the number of this step, from 1.
        version: the version of the kernel to run, by name.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    device = check_lists("sgd", lr, step, params=params, grads=grads, momentum_buffers=momentum_buffers)
    check_options("sgd", momentum=momentum, weight_decay=weight_decay)
    if (momentum_buffers is None) != (momentum == 0):
        came = "None" if momentum_buffers is None else "a list"
        raise ArgumentError(f"sgd: momentum_buffers must be None exactly if momentum is 0; got {came}, {momentum=}")
    if nesterov and (momentum == 0 or dampening != 0):
        raise ArgumentError(f"sgd: nesterov must come with momentum > 0 and dampening 0; got {momentum=}, {dampening=}")
    _operation.run(
        "sgd_step",
        device,
        params,
        grads,
        momentum_buffers,
        lr,
        step,
        float(momentum),
        float(dampening),
        nesterov,
        float(weight_decay),
        version=version,
    )
