"""Adam and AdamW in NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .._errors import ArgumentError


def adam_step(
    params: Sequence[np.ndarray],
    grads: Sequence[np.ndarray],
    exp_avgs: Sequence[np.ndarray],
    exp_avg_sqs: Sequence[np.ndarray],
    lr: np.ndarray,
    step: np.ndarray,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    rate, t = float(lr.item()), step.item()
    if t < 1:
        raise ArgumentError(f"adam: step must count from 1; got {t}")
    corrected_rate = rate / (1 - beta1**t)
    root_correction = math.sqrt(1 - beta2**t)
    with np.errstate(all="ignore"):
        for param, grad, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
            if weight_decay and decoupled:
                param *= 1 - rate * weight_decay
            elif weight_decay:
                grad = grad + weight_decay * param
            work = np.multiply(grad, 1 - beta1, out=np.empty_like(param))
            m *= beta1
            m += work
            np.multiply(grad, grad, out=work)
            work *= 1 - beta2
            v *= beta2
            v += work
            np.sqrt(v, out=work)
            work /= root_correction
            work += eps
            np.divide(m, work, out=work)
            work *= corrected_rate
            param -= work
