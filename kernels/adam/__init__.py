"""One step of Adam or AdamW over a list of parameters, in place.

Legend: θ a parameter, g its gradient, m and v the running averages of g and g²; t the number of this
step, from 1; η lr, (β1, β2) betas, λ weight_decay; all elementwise.

Step::

    g <- g + λ θ                    Adam
    θ <- θ - η λ θ                  AdamW: decoupled
    m <- β1 m + (1 - β1) g
    v <- β2 v + (1 - β2) g²
    θ <- θ - η / (1 - β1^t) m / (sqrt(v / (1 - β2^t)) + eps)

θ, m and v are overwritten, g is not.  These are torch's equations.

Sources: Kingma and Ba, "Adam", 2015; Loshchilov and Hutter, "Decoupled weight decay", 2019.

Checks: lists of equal length, shapes and dtype; options in their domains.
Backends: ``numpy`` (reference.py), ``numba`` (numba_cpu.py), ``cuda`` and ``emulated`` (cuda.py, adam.cu);
``numba_cuda`` (numba_cuda.py, twins of some versions).
"""

from __future__ import annotations

from typing import Any

from .._dispatch import Operation
from .._errors import ArgumentError
from .._steps import Arrays, check_decay_rates, check_lists, check_options

_operation = Operation(__name__)


def adam_step(
    params: Arrays,
    grads: Arrays,
    exp_avgs: Arrays,
    exp_avg_sqs: Arrays,
    lr: Any,
    step: Any,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    version: str | None = None,
) -> None:
    """One step; ``params``, ``exp_avgs`` and ``exp_avg_sqs`` are overwritten.

    Args:
        params, grads, exp_avgs, exp_avg_sqs: lists of arrays, all float32 or all float64, on one
            device.
        lr: one-element array on the device, float64 or the dtype of ``params``.
        step: one-element int64 array on the device, the number of this step, from 1.
        betas: shares of the past in the two averages, each in [0, 1).
        decoupled: whether the weight decay leaves the averages alone (AdamW).
        version: the version of the kernel to run, by name.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    device = check_lists("adam", lr, step, params=params, grads=grads, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs)
    check_options("adam", eps=eps, weight_decay=weight_decay)
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError):
        raise ArgumentError(f"adam: betas must be a pair of numbers; got {betas!r}") from None
    check_decay_rates("adam", beta1=beta1, beta2=beta2)
    _operation.run(
        "adam_step",
        device,
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        lr,
        step,
        float(beta1),
        float(beta2),
        float(eps),
        float(weight_decay),
        decoupled,
        version=version,
    )
