"""Adam and AdamW, compiled.

One launch for all parameters, cut into parts as in ``_simd_steps.py``.  An element of θ, g, m and v is read
once, of θ, m and v written once, a vector of them at a time; what a step makes of its count and its options is
computed once.  While all fits into the caches the division and the square root take the time, so
sqrt(v / (1 - β2^t)) is a product with a reciprocal here; else memory does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._errors import ArgumentError
from .._jit import in_parts
from .._simd import Pointer, Stage, Value, simd
from .._simd_steps import Arrays, launch, update_part


def adam_step(
    params: Arrays,
    grads: Arrays,
    exp_avgs: Arrays,
    exp_avg_sqs: Arrays,
    lr: np.ndarray,
    step: np.ndarray,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """As the reference's; see the package's docstring."""
    rate, t = float(lr.item()), step.item()
    if t < 1:
        raise ArgumentError(f"adam: step must count from 1; got {t}")
    keep, decay = (1 - rate * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    corrected_rate = rate / (1 - beta1**t)
    inverse_root = 1 / math.sqrt(1 - beta2**t)
    numbers = (keep, decay, beta1, 1 - beta1, beta2, 1 - beta2, corrected_rate, inverse_root, eps)
    launch(_step, [params, grads, exp_avgs, exp_avg_sqs], *numbers)


@in_parts
def _step(part: int, slot: int, like: Any, objects: Any, table: Any, numbers: Any) -> None:
    _update(like, objects, table, part, numbers)


@simd
def _update(s: Stage, like: Pointer, objects: Pointer, table: Pointer, part: Value, numbers: Pointer) -> None:
    def update(*values: Value) -> tuple[Value | None, ...]:
        theta, g, m, v = values[:4]
        keep, decay, beta1, rest1, beta2, rest2, rate, inverse_root, eps = values[4:]
        theta = theta * keep
        g = decay.equals(0.0).where(g, theta * decay + g)
        m = m * beta1 + g * rest1
        v = v * beta2 + g * g * rest2
        return theta - m / (s.sqrt(v) * inverse_root + eps) * rate, None, m, v

    update_part(s, like, objects, table, part, numbers, update, lists=4, count=9)
