"""One step of AdaGrad over a list of parameters, in place.

Legend: θ a parameter, g its gradient, s the sum of its squared gradients; t the number of this step,
from 1; η lr, λ weight_decay, κ lr_decay; all elementwise.

Step::

    g <- g + λ θ
    s <- s + g²
    θ <- θ - η / (1 + (t - 1) κ) g / (sqrt(s) + eps)

θ and s are overwritten, g is not.  These are torch's equations.

Source: Duchi, Hazan and Singer, "Adaptive subgradient methods", 2011.

Checks: lists of equal length, shapes and dtype; options in their domains.
Backends: ``numpy`` (reference.py), ``numba`` (numba_cpu.py), ``cuda`` and ``emulated`` (cuda.py, adagrad.cu);
``numba_cuda`` (numba_cuda.py, twins of some versions).
"""

from __future__ import annotations

from typing import Any

from .._dispatch import Operation
from .._steps import Arrays, check_lists, check_options

_operation = Operation(__name__)


def adagrad_step(
    params: Arrays,
    grads: Arrays,
    sums: Arrays,
    lr: Any,
    step: Any,
    *,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    version: str | None = None,
) -> None:
    """One step; ``params`` and ``sums`` are overwritten.

    Args:
        params, grads, sums: lists of arrays, all float32 or all float64, on one device.
        lr: one-element array on the device, float64 or the dtype of ``params``.
        step: one-element int64 array on the device, the number of this step, from 1.
        version: the version of the kernel to run, by name.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    device = check_lists("adagrad", lr, step, params=params, grads=grads, sums=sums)
    check_options("adagrad", lr_decay=lr_decay, eps=eps, weight_decay=weight_decay)
    options = float(lr_decay), float(eps), float(weight_decay)
    _operation.run("adagrad_step", device, params, grads, sums, lr, step, *options, version=version)
